"""Which licences are permissive, and which licence a text is.

The permissive list is the part of the Blue Oak Council's list (bronze and better, CC0) that is met in source code,
by SPDX id; public-domain dedications are counted in. MPL, EPL and LGPL are not in it (The Stack left them out at v1.1).
"""

import re

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
PERMISSIVE = frozenset(_PERMISSIVE_IDS.split())
_BY_LOWER_CASE = {name.lower(): name for name in PERMISSIVE}

_SPDX_TAG = re.compile(r"SPDX-License-Identifier:\s*([^\n*/]+)")
# Tried in order on lower-cased text with single spaces: the first whose every phrase is there names the licence.
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0", ("gnu affero general public license",)),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license",)),
    ("LGPL-2.0", ("gnu library general public license",)),
    ("GPL-3.0", ("gnu general public license", "version 3")),
    ("GPL-2.0", ("gnu general public license",)),
    ("MPL-2.0", ("mozilla public license",)),
    ("EPL-2.0", ("eclipse public license",)),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("BSL-1.0", ("boost software license",)),
    ("PSF-2.0", ("python software foundation license",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("Zlib", ("this software is provided 'as-is', without any express or implied warranty",)),
    ("PostgreSQL", ("postgresql license",)),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
)


def is_permissive(license_id: str, also: frozenset[str] = frozenset()) -> bool:
    """Whether an SPDX id (any case) is on the list, or in `also` (lower case); of an `A OR B`, whether any part is."""
    for choice in re.split(r"\s+or\s+", license_id.strip("() ").lower()):
        parts = [part.split(" with ")[0].strip("() ") for part in re.split(r"\s+and\s+", choice)]
        if all(part in _BY_LOWER_CASE or part in also for part in parts):
            return True
    return False


def identify_license(text: str) -> str | None:
    """The SPDX id that a licence file or a file's header names, by its SPDX tag or by its wording; else None."""
    tag = _SPDX_TAG.search(text)
    if tag:
        return tag.group(1).strip().rstrip("-> ")
    plain = " ".join(re.sub(r"[#*/;]+", " ", text).lower().split())
    return next((name for name, phrases in _PHRASES if all(phrase in plain for phrase in phrases)), None)
