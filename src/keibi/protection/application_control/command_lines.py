"""What an interpreter is told to run: a script, a module, or inline code. From its command line alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Where the code comes from."""

    SCRIPT = "script"
    COMMAND = "command"
    STDIN = "stdin"
    LIBRARY = "library"  # python3 -m x: a file that the interpreter itself finds
    NOTHING = "nothing"  # --version and the like


@dataclass(frozen=True)
class Told:
    """What a command line says. `script` is the argument as it was written."""

    source: Source
    script: bytes = b""


@dataclass(frozen=True)
class _Grammar:
    """An interpreter's options. Letters may be bundled ("-xc") and an argument may follow at once ("-Wignore")."""

    code: bytes = b""  # letters whose argument is code
    code_words: tuple[bytes, ...] = ()
    with_argument: bytes = b""  # letters that take an argument
    attached: bytes = b""  # letters whose argument, if any, is the rest of the word
    words_with_argument: tuple[bytes, ...] = ()
    library: bytes = b""
    stdin: bytes = b""
    nothing: bytes = b""
    nothing_words: tuple[bytes, ...] = (b"--version", b"--help")
    file: bytes = b""  # letters whose argument is the script
    plus: bool = False  # options may begin with + too


_SHELL = _Grammar(code=b"c", with_argument=b"oO", words_with_argument=(b"--rcfile", b"--init-file"), stdin=b"s", plus=True)
_GRAMMARS: tuple[tuple[tuple[bytes, ...], _Grammar], ...] = (
    ((b"python", b"pypy"), _Grammar(code=b"c", with_argument=b"WXQ", library=b"m", nothing=b"Vh")),
    (
        (b"perl",),
        _Grammar(code=b"eE", with_argument=b"I", attached=b"CDFMmx0il", nothing=b"vVh"),
    ),
    ((b"ruby", b"jruby"), _Grammar(code=b"e", with_argument=b"ICEr", attached=b"FKx0iTW", nothing=b"h")),
    (
        (b"php",),
        _Grammar(code=b"rBER", code_words=(b"--run",), with_argument=b"cdgzSt", nothing=b"vimh", file=b"fF"),
    ),
    (
        (b"node", b"nodejs"),
        _Grammar(
            code=b"ep",
            code_words=(b"--eval", b"--print", b"-pe"),
            with_argument=b"rC",
            words_with_argument=(b"--require", b"--import", b"--conditions"),
            nothing=b"vh",
        ),
    ),
    ((b"lua",), _Grammar(code=b"e", with_argument=b"l", nothing=b"v")),
    ((b"bash", b"dash", b"sh", b"zsh", b"ksh", b"mksh", b"ash"), _SHELL),
    (
        (b"java",),
        _Grammar(
            words_with_argument=(b"-cp", b"-classpath", b"--class-path", b"--module-path", b"-p"),
            nothing_words=(b"-version", b"--version", b"-help", b"--help"),
        ),
    ),
)


def read_command_line(arguments: Sequence[bytes], program: bytes) -> Told:
    """Return what the interpreter `program` (its path) is told by its arguments, the zeroth being its name.

    What is not known to take an argument is taken to have none; the first word without "-" is then the script.
    """
    words = list(arguments[1:])
    name = program.rpartition(b"/")[2]
    if name == b"busybox":
        if not words:
            return Told(Source.NOTHING)
        applet = arguments[0].rpartition(b"/")[2]
        name = applet if applet != b"busybox" else words.pop(0)
        if name not in (b"sh", b"ash", b"hush"):
            return Told(Source.NOTHING)
        name = b"sh"
    if name == b"java" and b"-jar" in words:
        place = words.index(b"-jar") + 1
        return Told(Source.SCRIPT, words[place]) if place < len(words) else Told(Source.NOTHING)
    grammar = next((found for names, found in _GRAMMARS if any(name.startswith(one) for one in names)), _Grammar())
    is_stdin = False
    while words:
        word = words.pop(0)
        if word == b"-":
            return Told(Source.STDIN)
        if word == b"--":
            break
        if word in grammar.nothing_words:
            return Told(Source.NOTHING)
        if word.partition(b"=")[0] in grammar.code_words:
            return Told(Source.COMMAND)
        if word in grammar.words_with_argument:
            words[:1] = []
            continue
        if word.startswith(b"--"):
            continue
        if word.startswith(b"-") or (grammar.plus and word.startswith(b"+") and len(word) > 1):
            found, takes_next, says_stdin = _letters(word[1:], grammar)
            is_stdin = is_stdin or says_stdin
            if found is Source.SCRIPT:
                return Told(Source.SCRIPT, words[0]) if words else Told(Source.NOTHING)
            if found is not None:
                return Told(found)
            if takes_next:
                words[:1] = []
            continue
        words.insert(0, word)
        break
    if is_stdin or not words:
        return Told(Source.STDIN)
    if name == b"java":
        return Told(Source.LIBRARY)
    return Told(Source.SCRIPT, words[0])


def _letters(letters: bytes, grammar: _Grammar) -> tuple[Source | None, bool, bool]:
    """Return what bundled letters say, whether the next word is an argument of theirs, and whether code comes from stdin."""
    is_stdin = False
    for index in range(len(letters)):
        letter = letters[index : index + 1]
        if letter in grammar.code:
            return Source.COMMAND, False, is_stdin
        if letter in grammar.library:
            return Source.LIBRARY, False, is_stdin
        if letter in grammar.file:
            return Source.SCRIPT, False, is_stdin
        if letter in grammar.nothing:
            return Source.NOTHING, False, is_stdin
        if letter in grammar.stdin:
            is_stdin = True
        if letter in grammar.attached:
            return None, False, is_stdin
        if letter in grammar.with_argument:
            # The rest of the word is the argument, if there is any.
            return None, index == len(letters) - 1, is_stdin
    return None, False, is_stdin
