"""Which systems are alike: the ID of os-release, and the IDs whose rules fit it too."""

from collections.abc import Iterable

DEBIAN_LIKE = "debian"
RHEL_LIKE = "rhel"

# ID -> ID_LIKE as the distributions ship it. Agents report the ID alone; a rule may name either.
_LIKE: dict[str, tuple[str, ...]] = {
    "debian": ("debian",),
    "ubuntu": ("ubuntu", "debian"),
    "linuxmint": ("ubuntu", "debian"),
    "pop": ("ubuntu", "debian"),
    "raspbian": ("debian",),
    "kali": ("debian",),
    "devuan": ("debian",),
    "proxmox": ("debian",),
    "rhel": ("rhel", "fedora"),
    "centos": ("centos", "rhel", "fedora"),
    "rocky": ("rhel", "centos", "fedora"),
    "almalinux": ("rhel", "centos", "fedora"),
    "ol": ("rhel", "fedora"),
    "miraclelinux": ("rhel", "fedora"),
    "amzn": ("rhel", "centos", "fedora"),
    "fedora": ("fedora", "rhel"),
    "sles": ("suse",),
    "opensuse-leap": ("suse", "opensuse"),
    "opensuse-tumbleweed": ("suse", "opensuse"),
    "windows": ("windows",),
}


def ids_of(os_name: str) -> frozenset[str]:
    """Return the ID itself and those it is like."""
    name = os_name.strip().lower()
    return frozenset({name, *_LIKE.get(name, ())})


def fits(wanted: Iterable[str], os_name: str) -> bool:
    """Whether a rule for `wanted` systems (empty: any) is meant for a computer of `os_name` ("": not known yet, so yes)."""
    names = {name.lower() for name in wanted}
    return not names or not os_name or bool(names & ids_of(os_name))


def family_of(os_name: str) -> str:
    """Return "debian", "rhel" or "" (neither)."""
    ids = ids_of(os_name)
    return next((family for family in (DEBIAN_LIKE, RHEL_LIKE) if family in ids), "")
