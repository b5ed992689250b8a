import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from keibi.contract import codec
from keibi.contract.events import Event, EventBatch
from keibi.contract.heartbeat import HeartbeatRequest
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.errors import InputError, KeibiError, RefusedError

EVENT = Event(new_id(), ModuleId.INTEGRITY_MONITORING, "file.updated", Severity.HIGH, 1.5, details={"before": {"size": 1}})


def test_a_batch_survives_the_wire():
    batch = EventBatch("b", [EVENT], dropped_since_last=3)
    assert codec.decode(codec.encode(batch), EventBatch) == batch


def test_a_decompression_bomb_costs_no_more_than_the_cap():
    bomb = zstandard.ZstdCompressor(level=19).compress(b"\0" * (200 * 1024 * 1024))
    assert len(bomb) < 50_000
    with pytest.raises(RefusedError, match="decompresses to more than"):
        codec.decode(bomb, EventBatch)


def test_a_bomb_whose_header_lies_about_its_size_is_refused_too():
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
    bomb = compressor.compress(b"\0" * (3 * 1024 * 1024)) + compressor.flush()
    with pytest.raises(RefusedError):
        codec.decode(bomb, EventBatch, max_decoded_bytes=1024 * 1024)


def test_a_window_larger_than_allowed_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(bytes(range(256)) * 400_000) + compressor.flush()
    with pytest.raises(KeibiError):
        codec.decode(body, EventBatch)


def test_a_body_that_is_cut_off_is_malformed():
    body = codec.encode(EventBatch("b", [EVENT] * 100))
    with pytest.raises(InputError):
        codec.decode(body[: len(body) // 2], EventBatch)


def test_an_oversized_body_is_refused_before_it_is_looked_at():
    with pytest.raises(RefusedError, match="bytes, more than"):
        codec.decode(b"\0" * (codec.MAX_BODY_BYTES + 1), EventBatch)


def test_an_envelope_from_a_newer_version_may_have_more_fields():
    newer = {"batch_id": "b", "events": [], "shiny": True}
    assert codec.decode(codec.encode(newer), EventBatch) == EventBatch("b", [])


def test_a_value_of_the_wrong_type_names_the_place():
    with pytest.raises(InputError, match=r"array.*\$\.events"):
        codec.decode(codec.encode({"batch_id": "b", "events": 7}), EventBatch)


def test_nesting_without_end_is_malformed():
    nested = b"\x81\xa7details" + b"\x81\xa1a" * 200_000 + b"\xc0"
    with pytest.raises(InputError):
        codec.decode(zstandard.ZstdCompressor().compress(nested), Event)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_our_own_errors(data):
    for body in (data, zstandard.ZstdCompressor().compress(data)):
        try:
            codec.decode(body, HeartbeatRequest)
        except KeibiError:
            pass


@given(st.dictionaries(st.text(), st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(allow_nan=False)))
def test_details_come_back_as_they_went(details):
    event = msgspec.structs.replace(EVENT, details=details)
    assert codec.decode(codec.encode(event), Event).details == details


def test_a_frame_says_its_length_and_one_that_is_too_long_is_refused():
    data = codec.frame(EVENT)
    assert codec.frame_length(data[:4]) == len(data) - 4
    with pytest.raises(RefusedError):
        codec.frame_length(b"\xff\xff\xff\xff")
