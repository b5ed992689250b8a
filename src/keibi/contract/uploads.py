"""Files that an agent sends because a command asked for them: `PUT /agent/v1/uploads/{command_id}?offset=N&final=0|1`.

The body is a part of the file, as it is. The answer says how much the manager has: after a lost answer, a broken connection or a
restart of either side the agent goes on from there.
"""

import msgspec

PART_BYTES = 4 * 1024 * 1024
"""Largest part."""
MAX_UPLOAD_BYTES = 256 * 1024 * 1024
"""Largest file."""


class UploadReceipt(msgspec.Struct, frozen=True):
    """How much of the file the manager has on disk, and whether that is all of it."""

    received_bytes: int
    is_complete: bool = False
