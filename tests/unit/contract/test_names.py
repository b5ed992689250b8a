import uuid

from keibi.contract.names import Severity, new_id


def test_ids_are_version_7_and_sort_by_time():
    ids = [new_id() for _ in range(200)]
    assert {uuid.UUID(value).version for value in ids} == {7}
    assert {uuid.UUID(value).variant for value in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 200
    assert [value[:12] for value in ids] == sorted(value[:12] for value in ids)


def test_severities_are_ordered():
    assert [severity.rank for severity in Severity] == [1, 2, 3, 4]
