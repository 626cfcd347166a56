"""Which licences are permissive, and which licence a text is.

The permissive list is the part of the Blue Oak Council's list (bronze and better, CC0) that is met in source code,
by SPDX id; public-domain dedications are counted in. MPL, EPL and LGPL are not in it (The Stack left them out at v1.1).
"""

import re
from functools import lru_cache

_PERMISSIVE_IDS = """
0BSD AFL-2.0 AFL-2.1 AFL-3.0 Apache-1.0 Apache-1.1 Apache-2.0 Artistic-2.0 BlueOak-1.0.0 Boehm-GC BSD-1-Clause
BSD-2-Clause BSD-2-Clause-FreeBSD BSD-2-Clause-Patent BSD-2-Clause-Views BSD-3-Clause BSD-3-Clause-Attribution
BSD-3-Clause-Clear BSD-3-Clause-LBNL BSD-3-Clause-Modification BSD-3-Clause-Open-MPI BSD-4-Clause
BSD-4-Clause-UC BSD-Source-Code BSL-1.0 bzip2-1.0.5 bzip2-1.0.6 CC0-1.0 CNRI-Python CNRI-Python-GPL-Compatible
curl DOC ECL-1.0 ECL-2.0 EFL-2.0 Fair FSFAP FTL HPND HPND-sell-variant ICU Info-ZIP Intel ISC JasPer-2.0 JSON
libpng libpng-2.0 libtiff Linux-OpenIB MIT MIT-0 MIT-advertising MIT-CMU MIT-enna MIT-feh MIT-Modern-Variant
MITNFA MTLL MulanPSL-1.0 MulanPSL-2.0 NCSA Net-SNMP NetCDF NIST-PD NTP OLDAP-2.7 OLDAP-2.8 OpenSSL PHP-3.0
PHP-3.01 PostgreSQL PSF-2.0 Python-2.0 Python-2.0.1 Ruby Spencer-86 Spencer-94 Spencer-99 SSH-OpenSSH SSH-short
TCL TCP-wrappers TU-Berlin-1.0 TU-Berlin-2.0 Unicode-DFS-2015 Unicode-DFS-2016 Unlicense UPL-1.0 W3C
W3C-19980720 W3C-20150513 WTFPL X11 Xnet Zed Zlib zlib-acknowledgement ZPL-2.0 ZPL-2.1
"""
_PERMISSIVE = frozenset(_PERMISSIVE_IDS.lower().split())

_SPDX_TAG = re.compile(r"SPDX-License-Identifier:\s*([^\n*/]+)")
_HEAD = 4096  # characters: further down a text tells of other licences, such as those of what is bundled
# Of lower-cased text with single spaces: the wording that comes first names the licence. Many licences name others
# later on: the GPL ends by recommending the LGPL, the MPL lists what may be combined with it.
_TITLES = {  # family, and the version where none follows
    "gnu affero general public license": ("AGPL", "3.0"),
    "gnu lesser general public license": ("LGPL", "2.1"),
    "gnu library general public license": ("LGPL", "2.0"),
    "gnu general public license": ("GPL", "2.0"),
    "gnu free documentation license": ("GFDL", "1.3"),
    "mozilla public license": ("MPL", "2.0"),
    "eclipse public license": ("EPL", "2.0"),
    "apache license": ("Apache", ""),
}
_VERSION = re.compile(r"\bv(?:ersion|\.)? ?(\d)(\.\d)?")
_VERSION_WITHIN = 200  # characters after the title
_WORDINGS = {
    "boost software license": "BSL-1.0",
    "python software foundation license": "PSF-2.0",
    "this is free and unencumbered software released into the public domain": "Unlicense",
    "cc0 1.0 universal": "CC0-1.0",
    "this software is provided 'as-is', without any express or implied warranty": "Zlib",
    "postgresql license": "PostgreSQL",
    "permission is hereby granted, free of charge, to any person obtaining a copy": "MIT",
    "permission to use, copy, modify, and/or distribute this software for any purpose": "ISC",
    "redistribution and use in source and binary forms": "BSD",
}


@lru_cache(maxsize=4096)
def is_permissive(license_id: str, also: frozenset[str] = frozenset()) -> bool:
    """Whether an SPDX expression (any case) leaves a choice of licences that are all listed, or in `also` (lower case).

    What is no expression is not permissive.
    """
    tokens = re.findall(r"[()]|[^\s()]+", license_id.lower())
    try:
        return _any(tokens, also) and not tokens
    except (IndexError, RecursionError):  # it ends too early, or is nothing but parentheses
        return False


def _any(tokens: list[str], also: frozenset[str]) -> bool:
    """`A OR B`, taken off the front of `tokens`; AND binds more tightly."""
    found = _all(tokens, also)
    while tokens[:1] == ["or"]:
        del tokens[0]
        found |= _all(tokens, also)
    return found


def _all(tokens: list[str], also: frozenset[str]) -> bool:
    """`A AND B`, taken off the front of `tokens`."""
    found = _one(tokens, also)
    while tokens[:1] == ["and"]:
        del tokens[0]
        found &= _one(tokens, also)
    return found


def _one(tokens: list[str], also: frozenset[str]) -> bool:
    """`(A)`, or an id with or without an exception, which only ever permits more."""
    token = tokens.pop(0)
    if token == "(":
        found = _any(tokens, also)
        return tokens.pop(0) == ")" and found
    if tokens[:1] == ["with"]:
        del tokens[:2]
    return token in _PERMISSIVE or token in also


def identify_license(text: str) -> str | None:
    """The SPDX id that the head of a licence file or a source file names, by its tag or by its wording; else None."""
    text = text[:_HEAD]
    tag = _SPDX_TAG.search(text)
    if tag:
        return tag.group(1).strip().rstrip("-> ")
    plain = " ".join(re.sub(r"[#*/;]+", " ", text).lower().split())
    found = {place: wording for wording in (*_TITLES, *_WORDINGS) if (place := plain.find(wording)) >= 0}
    if not found:
        return None
    place = min(found)
    wording = found[place]
    if wording in _WORDINGS:
        clauses = "3-Clause" if "neither the name" in plain else "2-Clause"
        return f"BSD-{clauses}" if _WORDINGS[wording] == "BSD" else _WORDINGS[wording]
    family, version = _TITLES[wording]
    after = place + len(wording)
    if told := _VERSION.search(plain[after : after + _VERSION_WITHIN]):
        version = told.group(1) + (told.group(2) or ".0")
    return f"{family}-{version}" if version else None
