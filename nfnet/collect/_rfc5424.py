"""The formats of syslog messages: RFC 5424, and that of the C library. Pure functions, no sockets."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from .._caching import lru_cache
from .._printable import printable

_FACILITIES = (
    "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock"
    " local0 local1 local2 local3 local4 local5 local6 local7"
)
_SEVERITIES = "emerg alert crit err warning notice info debug"
FACILITIES = {name: number for number, name in enumerate(_FACILITIES.split())}
"""Numbers by name."""
SEVERITIES = {name: number for number, name in enumerate(_SEVERITIES.split())}
"""Numbers by name; the smaller, the more urgent."""

LEAST_SIZE = 480
"""The size of a message in bytes that every receiver must accept."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_BOM = "\ufeff"
_ESCAPED = re.compile(r'(["\\\]])')
_NO_NAME = re.compile(r'[^!-~]|[=\]"]')  # SD-NAME: printable ASCII except these
_LONGEST_NAME = 32
_SD_ID = re.compile(r'(?=.{1,32}$)(?:(?![=\]"@])[!-~])+@[0-9]+(?:\.[0-9]+)*')
_APP_NAME = re.compile(r"[!-~]{1,48}")


def facility(value: object) -> int:
    """Return the number of a facility. Raises ValueError."""
    return _number(value, FACILITIES, "facility")


def severity(value: object) -> int:
    """Return the number of a severity. Raises ValueError."""
    return _number(value, SEVERITIES, "severity")


def app_name(value: object) -> str:
    """Check the name of a program: 1 to 48 characters of ASCII, no blanks. Raises ValueError."""
    if not _APP_NAME.fullmatch(str(value)):
        raise ValueError(f"{value!r} is no name of a program: 1 to 48 characters of ASCII, no blanks")
    return str(value)


def sd_id(value: object) -> str:
    """Check the name of structured data: NAME@NUMBER. Raises ValueError."""
    if not _SD_ID.fullmatch(str(value)):
        raise ValueError(f"{value!r} is not NAME@NUMBER, with a private enterprise number, 32 characters at most")
    return str(value)


def _number(value: object, names: Mapping[str, int], what: str) -> int:
    found = names.get(str(value))
    if found is None:
        raise ValueError(f"{value!r} is no {what}; there is {', '.join(names)}")
    return found


def header_word(text: str, longest: int) -> str:
    """Return a text as a word of the header, in printable ASCII; ``-`` if it is empty."""
    return re.sub(r"[^!-~]", "?", text)[:longest] or "-"


@lru_cache(4096)  # most of them are the same in many messages
def parameter(name: str, value: str) -> str:
    """Return a parameter of structured data. Invalid characters in the name become ``_``; long names keep their end."""
    escaped = _ESCAPED.sub(r"\\\1", printable(value))
    return f'{_NO_NAME.sub("_", name)[-_LONGEST_NAME:]}="{escaped}"'


def message(header: str, data_id: str, parameters: list[str], text: str, most: int) -> bytes:
    """Return a message of at most ``most`` bytes.

    header: everything before the structured data. A text that is too long is cut at the end of a character, and if that
    is not enough the last parameters are left out, so that the message is always valid.
    """
    while True:
        data = f"[{data_id} {' '.join(parameters)}]" if parameters else "-"
        start = f"{header} {data} ".encode()
        room = most - len(start)
        if room >= 0 or not parameters:
            break
        parameters = parameters[:-1]
    if not text.isascii():
        text = _BOM + text  # UTF-8 must be declared by a byte order mark
    return start + _cut(text, room)


def local_message(priority: int, time_ns: int, program: str, text: str, most: int) -> bytes:
    """Return a message of at most ``most`` bytes, as ``syslog()`` of the C library writes it."""
    when = time.localtime(time_ns // 1_000_000_000)
    start = f"<{priority}>{_MONTHS[when.tm_mon - 1]} {when.tm_mday:2} {time.strftime('%H:%M:%S', when)} {program}: "
    return start.encode() + _cut(text, most - len(start))


def _cut(text: str, most: int) -> bytes:
    return text.encode("utf-8")[: max(most, 0)].decode("utf-8", "ignore").encode()
