"""REST: the policy tree under /api/v1/policies, and computers as its last level."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

from keibi.contract.names import ModuleId, Severity
from keibi.contract.policy import ModuleState
from keibi.errors import InputError
from keibi.manager.access.api import current_principal
from keibi.manager.access.model import Principal
from keibi.manager.policies.model import (
    MAX_DESCRIPTION_CHARACTERS,
    MAX_NAME_CHARACTERS,
    Applied,
    ComputerPolicy,
    DifferenceLine,
    EffectiveSettings,
    ImportResult,
    PolicyNode,
    PolicyVersion,
    Preview,
)
from keibi.manager.policies.overrides import PolicyChange
from keibi.manager.policies.service import PolicyService

router = APIRouter(prefix="/api/v1/policies", tags=["policies"])

MAX_FILE_CHARACTERS = 1_000_000


def policy_service(request: Request) -> PolicyService:
    """Return the service of the running manager."""
    service: PolicyService = request.app.state.services.policies
    return service


Asker = Annotated[Principal, Depends(current_principal)]
Policies = Annotated[PolicyService, Depends(policy_service)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RuleChangeBody(_Body):
    """A change of one rule; a part that is left out stays, null is inherited again."""

    is_assigned: bool | None = None
    severity: Severity | None = None
    is_real_time: bool | None = None
    added_excludes: list[str] | None = None


class ModuleChangeBody(_Body):
    """A change of one module; a setting or rule that is null is inherited again."""

    state: ModuleState | None = None
    settings: dict[str, Any] = Field({}, description="Fields of the module's settings; null is inherited again.")
    rules: dict[str, RuleChangeBody | None] = {}


class OverridesBody(_Body):
    """A change of what a level says itself: a JSON merge patch (RFC 7396)."""

    heartbeat_seconds: int | None = None
    modules: dict[ModuleId, ModuleChangeBody] = {}

    def change(self) -> PolicyChange:
        """Return it as the service takes it: with what was left out told apart from null."""
        try:
            return msgspec.convert(self.model_dump(exclude_unset=True, mode="json", exclude={"expected_version"}), PolicyChange)
        except msgspec.ValidationError as error:
            raise InputError("change_invalid", f"the change is wrong: {error}") from error


class ComputerChangeBody(OverridesBody):
    """A change of what a computer says itself."""


class ComputerApplyBody(OverridesBody):
    """The same, to be applied."""

    expected_version: int = Field(description="The computer's version as it was shown (0 when it says nothing).")


class PolicyChangeBody(OverridesBody):
    """A change of a policy."""

    name: str = Field("", max_length=MAX_NAME_CHARACTERS)
    description: str = Field("", max_length=MAX_DESCRIPTION_CHARACTERS)


class PolicyApplyBody(PolicyChangeBody):
    """The same, to be applied."""

    expected_version: int = Field(description="The policy's version as it was shown; refused when it is another by now.")


class NewPolicyBody(OverridesBody):
    """A policy to make."""

    name: str
    parent_id: str | None = Field(None, description="The policy it is below; none for a root.")
    description: str = ""

    def change(self) -> PolicyChange:
        """Return what the new policy says itself."""
        return OverridesBody.model_validate(
            self.model_dump(exclude_unset=True, include={"heartbeat_seconds", "modules"})
        ).change()


class MoveBody(_Body):
    """Where a policy goes; null is the top."""

    parent_id: str | None


class MoveApplyBody(MoveBody):
    """The same, to be applied."""

    expected_version: int


class ReturnBody(_Body):
    """The version to return to."""

    version: int
    expected_version: int


class DuplicateBody(_Body):
    """The copy's name."""

    name: str


class AssignBody(_Body):
    """Computers, and groups with all that is in and below them now."""

    computer_ids: list[str] = Field([], max_length=10_000)
    group_ids: list[str] = Field([], max_length=1000)


class FileBody(_Body):
    """Policies as YAML."""

    text: str = Field(max_length=MAX_FILE_CHARACTERS)


@router.get("", summary="Show the policy tree")
def list_policies(principal: Asker, policies: Policies) -> list[PolicyNode]:
    """Return all policies, parents before children."""
    return list(policies.tree(principal))


@router.post("", status_code=status.HTTP_201_CREATED, summary="Make a policy")
def create_policy(principal: Asker, policies: Policies, body: NewPolicyBody) -> PolicyNode:
    """Make a policy as a root or below another; what it does not say it inherits."""
    return policies.create(principal, body.name, body.parent_id, body.description, body.change())


@router.post("/import", summary="Import policies from YAML")
def import_policies(
    principal: Asker,
    policies: Policies,
    body: FileBody,
    dry_run: Annotated[bool, Query(description="say what would happen, and do nothing")] = True,
) -> ImportResult:
    """Make and change the policies and own rules of a file, all of them or none."""
    return policies.code.preview_import(principal, body.text) if dry_run else policies.code.import_file(principal, body.text)


@router.post("/unassign/preview", summary="Preview returning computers to their default policy")
def preview_unassign(principal: Asker, policies: Policies, body: AssignBody) -> Preview:
    """Say what giving computers the default policy of their system would do."""
    return policies.computers.preview_assign(principal, None, body.computer_ids, body.group_ids)


@router.post("/unassign", summary="Return computers to their default policy")
def unassign(principal: Asker, policies: Policies, body: AssignBody) -> Preview:
    """Give computers the default policy of their system."""
    return policies.computers.assign(principal, None, body.computer_ids, body.group_ids)


@router.get("/computers/{computer_id}", summary="Show which policy a computer uses")
def get_computer_policy(principal: Asker, policies: Policies, computer_id: str) -> ComputerPolicy:
    """Return a computer's policy and generation."""
    return policies.computers.get(principal, computer_id)


@router.get("/computers/{computer_id}/effective", summary="Show a computer's effective settings")
def get_computer_settings(principal: Asker, policies: Policies, computer_id: str) -> EffectiveSettings:
    """Return every value with its origin, and whether each rule fits this computer's system."""
    return policies.computers.effective_settings(principal, computer_id)


@router.post("/computers/{computer_id}/preview", summary="Preview a change of a computer's overrides")
def preview_computer(principal: Asker, policies: Policies, computer_id: str, body: ComputerChangeBody) -> Preview:
    """Say what a change would do."""
    return policies.computers.preview(principal, computer_id, body.change())


@router.patch("/computers/{computer_id}", summary="Change a computer's overrides")
def change_computer(principal: Asker, policies: Policies, computer_id: str, body: ComputerApplyBody) -> Applied:
    """Apply a change of what a computer says itself, whole or not at all."""
    return policies.computers.change(principal, computer_id, body.change(), body.expected_version)


@router.get("/{policy_id}", summary="Show a policy")
def get_policy(principal: Asker, policies: Policies, policy_id: str) -> PolicyNode:
    """Return one policy."""
    return policies.get(principal, policy_id)


@router.get("/{policy_id}/effective", summary="Show a policy's effective settings")
def get_effective_settings(principal: Asker, policies: Policies, policy_id: str) -> EffectiveSettings:
    """Return every value with its origin, what differs from the parent, and the help of each setting."""
    return policies.effective_settings(principal, policy_id)


@router.post("/{policy_id}/preview", summary="Preview a change")
def preview_policy(principal: Asker, policies: Policies, policy_id: str, body: PolicyChangeBody) -> Preview:
    """Return a readable difference and the computers that would be reached."""
    return policies.preview(principal, policy_id, body.change())


@router.patch("/{policy_id}", summary="Change a policy")
def change_policy(principal: Asker, policies: Policies, policy_id: str, body: PolicyApplyBody) -> Applied:
    """Apply a change, whole or not at all; a policy that would not compile is refused and the old one stays."""
    return policies.change(principal, policy_id, body.change(), body.expected_version)


@router.delete("/{policy_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Delete a policy")
def delete_policy(principal: Asker, policies: Policies, policy_id: str, expected_version: int | None = None) -> None:
    """Delete a policy that nothing uses."""
    policies.delete(principal, policy_id, expected_version)


@router.post("/{policy_id}/move/preview", summary="Preview moving a policy")
def preview_move(principal: Asker, policies: Policies, policy_id: str, body: MoveBody) -> Preview:
    """Say what moving it would do."""
    return policies.preview_move(principal, policy_id, body.parent_id)


@router.post("/{policy_id}/move", summary="Move a policy")
def move_policy(principal: Asker, policies: Policies, policy_id: str, body: MoveApplyBody) -> Applied:
    """Move a policy with all below it to another parent."""
    return policies.move(principal, policy_id, body.parent_id, body.expected_version)


@router.post("/{policy_id}/duplicate", status_code=status.HTTP_201_CREATED, summary="Duplicate a policy")
def duplicate_policy(principal: Asker, policies: Policies, policy_id: str, body: DuplicateBody) -> PolicyNode:
    """Make a policy beside this one that says the same."""
    return policies.duplicate(principal, policy_id, body.name)


@router.get("/{policy_id}/versions", summary="List a policy's versions")
def list_policy_versions(principal: Asker, policies: Policies, policy_id: str) -> list[PolicyVersion]:
    """Return every version, newest first."""
    return list(policies.versions(principal, policy_id))


@router.get("/{policy_id}/compare", summary="Compare two versions of a policy")
def compare_policy_versions(
    principal: Asker, policies: Policies, policy_id: str, before: int, after: int
) -> list[DifferenceLine]:
    """Return what differs between two versions."""
    return list(policies.compare_versions(principal, policy_id, before, after))


@router.post("/{policy_id}/return/preview", summary="Preview returning to an older version")
def preview_return(principal: Asker, policies: Policies, policy_id: str, version: Annotated[int, Query(ge=1)]) -> Preview:
    """Say what returning to that version would do."""
    return policies.preview_return(principal, policy_id, version)


@router.post("/{policy_id}/return", summary="Return to an older version")
def return_policy(principal: Asker, policies: Policies, policy_id: str, body: ReturnBody) -> Applied:
    """Make a new version that says what an older one said."""
    return policies.return_to(principal, policy_id, body.version, body.expected_version)


@router.post("/{policy_id}/assign/preview", summary="Preview assigning a policy")
def preview_assign(principal: Asker, policies: Policies, policy_id: str, body: AssignBody) -> Preview:
    """Say what assigning it to computers and groups would do."""
    return policies.computers.preview_assign(principal, policy_id, body.computer_ids, body.group_ids)


@router.post("/{policy_id}/assign", summary="Assign a policy")
def assign_policy(principal: Asker, policies: Policies, policy_id: str, body: AssignBody) -> Preview:
    """Assign it to computers, and to all that are in these groups now; all of them or none."""
    return policies.computers.assign(principal, policy_id, body.computer_ids, body.group_ids)


@router.get(
    "/{policy_id}/export",
    summary="Export a policy as YAML",
    response_class=Response,
    responses={200: {"content": {"application/yaml": {"schema": {"type": "string"}}}}},
)
def export_policy(
    principal: Asker,
    policies: Policies,
    policy_id: str,
    with_children: Annotated[bool, Query(description="with all policies below it")] = False,
) -> Response:
    """Return the policy as text that `import` takes."""
    return Response(policies.code.export(principal, policy_id, with_children=with_children), media_type="application/yaml")
