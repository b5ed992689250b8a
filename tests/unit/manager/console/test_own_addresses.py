"""Where the console sends a browser: to its own pages, whatever a link or a form says."""

import pytest

from keibi.manager.console.security import own_address, safe_next


@pytest.mark.parametrize(
    "address",
    ["//evil.example", "/\\evil.example", "/\t/evil.example", "/\n/evil.example", "\t//evil.example", "https://evil.example",
     "javascript:alert(1)", "", "/a\r\nSet-Cookie: x=y", "/\\/evil.example", "/a\\b"],
)  # fmt: skip
def test_no_address_leads_to_another_host(address):
    assert own_address(address, "/home") == "/home"
    assert safe_next(address) == "/"


def test_pages_of_the_console_are_come_back_to():
    for address in ("/events/software?text=%E6%97%A5&by=hash#x", "/computers/日本", "/"):
        assert own_address(address, "/home") == safe_next(address) == address
    assert safe_next("/sign-in") == "/"
