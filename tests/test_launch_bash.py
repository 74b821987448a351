"""The launch scripts run in bash 3.2, which macOS has, and ask nothing of GNU's programs there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.bash")])
LACKING = {
    "mapfile": r"\b(mapfile|readarray)\b",  # 4.0
    "associative arrays": r"\b(declare|local|typeset)\s+-\w*A",  # 4.0
    "namerefs": r"\b(declare|local|typeset)\s+-\w*n\b",  # 4.3
    "declare -g": r"\bdeclare\s+-\w*g",  # 4.2
    "case modification": r"\$\{\w+(\[[^]]*\])?(\^|,)",  # 4.0
    "@Q and the like": r"\$\{[^}]*@[QEPAaUuLK]\}",  # 4.4
    "negative subscripts": r"\$\{\w+\[-|\$\{\w+:[^}]*:\s*-",  # 4.2, 4.3
    "parentheses in a pattern": r"=~\s+[^$\s]\S*\(",  # 3.2 wants the pattern in a variable
    "wait -n": r"\bwait\s+-[nfp]",  # 4.3
    "&>> and |&": r"&>>|\|&",  # 4.0
    "printf of time": r"printf[^\n]*%\([^)]*\)T",  # 4.2
    "[[ -v": r"\[\[\s+(!\s+)?-v\s",  # 4.2
    "coproc": r"^\s*coproc\b",  # 4.0
    ";& and ;;&": r";;?&",  # 4.0
    "variables of later versions": r"\$\{?(EPOCH(SECONDS|REALTIME)|BASHPID|SRANDOM|BASH_ARGV0)\b",
    "globstar and lastpipe": r"\bshopt\s+-s\s+(globstar|lastpipe|inherit_errexit)",
    "a file descriptor by name": r"\bexec\s+\{\w+\}[<>]",  # 4.1
    "read -t with a fraction": r"\bread\s[^\n]*-t\s*\d*\.\d",  # 4.0
    "zero-padded braces": r"\{0\d+\.\.|\{\w+\.\.\w+\.\.\w+\}",  # 4.0
}
"""Name -> pattern of what bash 3.2 does not know."""

GNU = {
    "realpath": r"(?<![\w-])realpath\b",
    "readlink -f": r"\breadlink\s+-[a-z]*[fem]",
    "sed -i": r"\bsed\s+(-\w+\s+)*-i",
    "grep -P": r"\bgrep\s+-\w*P",
    "date -d": r"\bdate\s[^\n|;]*(-d\b|--date|%N)",
    "stat -c": r"\bstat\s+-c",
    "tar --one-top-level": r"--one-top-level",
    "head -n -N": r"\bhead\s+-n\s*-\d",
    "xargs -r": r"\bxargs\s+-\w*[rd]\b",
    "timeout": r"(^|[|;&(]\s*)timeout\s",
    "nproc": r"(?<![\w-])nproc\b",
    "cp -t": r"\b(cp|mv|ln)\s+-\w*t\b",
    "sort -V": r"\bsort\s+-\w*V",
    "find -printf": r"\bfind\s[^\n]*-printf",
    "setsid": r"(?<![\w-])setsid\b",
}
"""Name -> pattern of what BSD's programs do not know; sha256sum has a substitute beside it."""


def code(text: str) -> str:
    """A script without comments and without texts that it only prints or sends elsewhere."""
    text = re.sub(r"<<-? ?(['\"]?)([A-Z]+)\1[^\n]*\n.*?\n\s*\2\n", "\n", text, flags=re.DOTALL)
    return re.sub(r"(^|\s)#(?!\})[^\n]*", r"\1", text)


def lacks(text: str, patterns: dict[str, str]) -> list[str]:
    return [name for name, pattern in patterns.items()
            if re.search(pattern, code(text), re.MULTILINE)]  # fmt: skip


def arrays(text: str) -> set[str]:
    """Arrays that begin, or may become, empty."""
    return set(re.findall(r"(\w+)=\(\)", code(text)))


def unguarded(text: str) -> list[str]:
    """Expansions of arrays that may be empty: an error in 3.2, of set -u, unless they stand as
    ${name[@]+"${name[@]}"} or the script has added to the array at once."""
    guarded = re.sub(r'\$\{(\w+)\[@\]:?\+"\$\{\1\[@\]\}"\}', "", code(text))
    return [name for name in sorted(arrays(text)) if re.search(rf"\$\{{{name}\[[@*]\]", guarded)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_run_on_a_mac(script: Path) -> None:
    text = script.read_text()
    assert lacks(text, LACKING) == [], "bash 3.2 does not know it"
    assert lacks(text, GNU) == [], "macOS does not know it"
    assert unguarded(text) == [], 'write ${name[@]+"${name[@]}"}: an empty array is unset in 3.2'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mapfile -t x < f", "mapfile"),
        ("declare -A x=()", "associative arrays"),
        ("local -n x=$1", "namerefs"),
        ('echo "${x^^}"', "case modification"),
        ('echo "${x,,}" "${x[0]^}"', "case modification"),
        ('echo "${x@Q}"', "@Q and the like"),
        ('echo "${x[-1]}"', "negative subscripts"),
        ("wait -n", "wait -n"),
        ("[[ $x =~ ^(a|b)$ ]]", "parentheses in a pattern"),
        ("echo a &>> log", "&>> and |&"),
        ("a |& b", "&>> and |&"),
        ("if [[ -v x ]]; then", "[[ -v"),
        ("case a in a) b ;;& esac", ";& and ;;&"),
        ("echo $EPOCHSECONDS", "variables of later versions"),
        ("exec {lock}> file", "a file descriptor by name"),
    ],
)
def test_what_bash_3_2_lacks_is_found(text: str, found: str) -> None:
    assert lacks(text, LACKING) == [found]
    assert lacks(f"# {text}\ncat << 'TEXT'\n{text}\nTEXT\n", LACKING) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x=$(realpath -m y)", "realpath"),
        ("sed -i 1d x", "sed -i"),
        ("date -d yesterday", "date -d"),
        ("tar x --one-top-level=y", "tar --one-top-level"),
        ("timeout 5 x", "timeout"),
        ("x=$(nproc)", "nproc"),
    ],
)
def test_what_macos_lacks_is_found(text: str, found: str) -> None:
    assert lacks(text, GNU) == [found]


def test_expansions_of_empty_arrays_are_found() -> None:
    assert unguarded('x=() y=()\nf "${x[@]}" ${y[@]+"${y[@]}"}\n') == ["x"]
    assert unguarded('x=(a)\nf "${x[@]}"\n') == []
