"""The policies that every tenant has from the start: files of `as_code`'s form under `content/policies/`."""

import os
from typing import Protocol

from sqlalchemy.orm import Session

from keibi.errors import InputError


class Provisioner(Protocol):
    """Makes the policies of a file for a tenant."""

    def provision(self, session: Session, tenant_id: str, text: str) -> None:
        """Make them in the caller's transaction."""
        ...


def provision_templates(session: Session, tenant_id: str, code: Provisioner, content_directory: str) -> None:
    """Give a tenant the shipped policies.

    Raises:
        InputError: the shipped files are missing or wrong.
    """
    folder = os.path.join(content_directory, "policies")
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".yaml"))
    except OSError as error:
        message = f"the shipped policies cannot be read: {error.strerror}"
        raise InputError("content_missing", message, where=folder, hint="reinstall Keibi") from error
    for name in names:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            code.provision(session, tenant_id, file.read())
