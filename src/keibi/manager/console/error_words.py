"""Errors in the reader's language, by their stable codes. English readers get the message itself, which has the value in it."""

from collections.abc import Mapping
from types import MappingProxyType

from keibi.errors import KeibiError
from keibi.manager.console.language import DEFAULT_LANGUAGE, N_, Catalogue

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "account_disabled": N_("This account is disabled."),
        "api_key_not_found": N_("There is no such API key."),
        "changed_meanwhile": N_("Somebody else changed this meanwhile. Load the page again and repeat your change."),
        "command_not_found": N_("There is no such command."),
        "commands_full": N_("Too many commands wait for this computer. Is its agent running?"),
        "computer_disabled": N_("This computer is disabled. Enable it first."),
        "computer_name": N_("A computer's name has 1 to 255 printable characters."),
        "computer_not_found": N_("There is no such computer."),
        "credentials_wrong": N_("The user name or the password is not right."),
        "csrf_token": N_("This page is too old. Load it again and repeat what you did."),
        "cursor_invalid": N_("This part of the list is not there any more. Start again at the first page."),
        "days_invalid": N_("Events can be kept for 1 to 3,660 days."),
        "event_store_away": N_("The event store is away. It is started again by itself; try again in a moment."),
        "event_unknown": N_("There is no such event. It may have been removed because it was old, or is not yours to see."),
        "exclude_outside": N_("A pattern to leave out lies outside what the rule watches."),
        "foreign_origin": N_("This request came from another site and was refused."),
        "grant_conflict": N_("This is the last provider: nobody could manage customers any more."),
        "grant_exists": N_("This user has that role there already."),
        "group_conflict": N_("The group is not empty. Move what is in it first."),
        "group_exists": N_("There is a group of that name at this place already."),
        "group_name": N_("A group's name has 1 to 200 printable characters."),
        "group_not_found": N_("There is no such group."),
        "key_name": N_("A key's name has 1 to 100 printable characters."),
        "locked_out": N_("Too many attempts failed. Wait for a while, then try again."),
        "more_than_own": N_("You cannot give what you do not have yourself. Ask somebody who has these rights."),
        "not_allowed": N_("Your role does not allow this. Ask an administrator."),
        "number_invalid": N_("A whole number is needed here."),
        "nothing_chosen": N_("Choose at least one first."),
        "other_tenant": N_("The policy and the computers belong to different customers."),
        "page_failed": N_("Something in the manager went wrong; it is in its log."),
        "page_not_found": N_("There is no page at this address."),
        "password_change_required": N_("You must change your password first."),
        "password_weak": N_("This password is too easy to guess, or the same as before. Use at least 12 characters."),
        "password_wrong": N_("This password is not right."),
        "clamav_altered": N_("The database is broken or was altered. Fetch it again from where it came from."),
        "clamav_too_new": N_("The database was made for a newer version of ClamAV than Keibi is tested with."),
        "file_missing": N_("Choose a file first."),
        "import_busy": N_("Another import is under way. Wait until it has ended."),
        "import_empty": N_("Nothing in the file can be used."),
        "pattern_name": N_("A pattern set's name has 1 to 64 small letters, digits, dots, hyphens and underscores."),
        "pattern_set_in_use": N_("Policies use this set. Take it out of them first."),
        "pattern_set_not_found": N_("There is no such pattern set."),
        "pattern_set_unknown": N_("A policy names a pattern set that there is not."),
        "period_empty": N_("The period ends before it begins."),
        "policy_below_itself": N_("A policy cannot stand below itself."),
        "policy_exists": N_("There is a policy of that name at this place already."),
        "policy_has_children": N_("There are policies below this one. Move or delete them first."),
        "policy_in_use": N_("Computers use this policy. Give them another one first."),
        "policy_name": N_("A policy's name has 1 to 100 printable characters."),
        "policy_not_found": N_("There is no such policy."),
        "policy_too_deep": N_("Policies would stand too many levels below each other."),
        "upload_bomb": N_("The file unpacks to more than anybody would upload. Import it in parts."),
        "upload_broken": N_("The file cannot be unpacked. Is it whole?"),
        "upload_encrypted": N_("The file is encrypted."),
        "upload_kind": N_("Archives of this kind are not taken. Use zip or tar.gz."),
        "yara_compiled": N_("The file holds compiled rules. Import their source."),
        "allow_days_invalid": N_("A file can be allowed for 1 to 3,650 days."),
        "items_too_many": N_("These are too many files at once. Narrow the filter first."),
        "path_not_absolute": N_("A path must begin with /."),
        "paths_missing": N_("Give at least one path."),
        "quarantine_not_found": N_("No event tells of this file any more. Ask the computer for its list."),
        "scan_conflict": N_("This scan has ended already."),
        "scan_impossible": N_("This computer cannot scan now. Look at its state."),
        "setting_not_json": N_("This setting must be JSON."),
        "sha256_invalid": N_("A SHA-256 has 64 hexadecimal digits."),
        "upload_not_found": N_("The file is not at the manager. Fetch it from the computer; it is kept for a day."),
        "restore_impossible": N_("The content of this file is not kept on the computer, so it cannot be restored."),
        "role_conflict": N_("Somebody has this role. Take it back from them first."),
        "role_exists": N_("There is a role of that name already."),
        "role_name": N_("A role's name has 1 to 100 printable characters and is not that of a built-in role."),
        "rule_exists": N_("There is a rule with that id already."),
        "rule_id_fixed": N_("A rule keeps its id. Make a copy instead."),
        "rule_in_use": N_("Policies use this rule. Take it out of them first."),
        "rule_invalid": N_("The rule has problems."),
        "rule_not_found": N_("There is no such rule."),
        "rule_shipped": N_("A shipped rule cannot be changed. Copy it and change the copy."),
        "session_ended": N_("Your session has ended. Sign in again."),
        "setting_invalid": N_("A value does not fit its setting."),
        "setting_not_a_number": N_("A whole number is needed here."),
        "setting_not_a_pair": N_("Write one NAME=value on each line."),
        "sign_in_busy": N_("Too many people sign in at this moment. Try again in a few seconds."),
        "tag_invalid": N_("A tag has 1 to 50 visible characters."),
        "tenant_exists": N_("There is a customer of that name already."),
        "tenant_is_own": N_("You cannot disable the customer that your own account belongs to."),
        "tenant_name": N_("A customer's name has 1 to 200 printable characters."),
        "tenant_not_allowed": N_("There is no such customer, or it is not yours to see."),
        "tenant_not_chosen": N_("Choose a customer at the top first."),
        "tenant_not_found": N_("There is no such customer."),
        "time_invalid": N_("This is not a time."),
        "token_limits": N_("A token lasts from a minute to a year, for 1 to 1,000,000 computers."),
        "token_name": N_("A token's name has 1 to 200 printable characters."),
        "token_not_found": N_("There is no such enrolment token."),
        "too_many_computers": N_("These are too many computers at once. Narrow the filter first."),
        "totp_exists": N_("Two-step sign-in is on already."),
        "totp_required": N_("A one-time code is needed. Open your authenticator app."),
        "totp_used": N_("This one-time code was used already. Wait for the next one."),
        "totp_wrong": N_("This code is not right. Is the clock of your telephone right?"),
        "trial_unreadable": N_("The change cannot be read. Write type, key and change."),
        "user_exists": N_("This user name is taken."),
        "user_is_self": N_("You cannot disable yourself."),
        "user_name": N_("This cannot be a user name."),
        "user_not_found": N_("There is no such user."),
    }
)

OTHERWISE_HERE = frozenset({"csrf_token", "tenant_not_chosen"})
"""Codes whose own message speaks to programs: in the console something else is to be done."""


def told(catalogue: Catalogue, error: KeibiError) -> str:
    """Return what is wrong. Codes without words of ours keep their English message, so that nothing is hidden."""
    if _has_words(catalogue, error):
        return catalogue.gettext(WORDS[error.code])
    message = error.message
    return message[:1].upper() + message[1:] + ("" if message.endswith((".", "!", "?")) else ".")


def hint(catalogue: Catalogue, error: KeibiError) -> str:
    """Return what to do. In another language than English the words for the code say it already."""
    return "" if _has_words(catalogue, error) else error.hint[:1].upper() + error.hint[1:]


def _has_words(catalogue: Catalogue, error: KeibiError) -> bool:
    return error.code in WORDS and (catalogue.language != DEFAULT_LANGUAGE or error.code in OTHERWISE_HERE)
