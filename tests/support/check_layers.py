#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The order of the layers, read from the #include lines (docs/design.md, layout).

base < codec < spool < {source, sink} < pipeline < daemon. A file may include its own layer and
those below; source and sink do not know each other; tools use base, codec, spool and the HTTP
client of sink (for the control socket). A library belongs to the layer that wraps it.
Prints file:line: what, and exits 1 if there is anything.
"""
import glob
import re
import sys

BELOW = {
    "base": set(),
    "codec": {"base"},
    "spool": {"base", "codec"},
    "source": {"base", "codec", "spool"},
    "sink": {"base", "codec", "spool"},
    "pipeline": {"base", "codec", "spool", "source", "sink"},
    "daemon": {"base", "codec", "spool", "source", "sink", "pipeline"},
    "tools": {"base", "codec", "spool"},
    "include": set(),
}
ALSO = {"tools": {"sink/http_client.h"}}

# Header (a regular expression) -> the files that may include it.
OWNERS = [
    (r"lmdb\.h", r"src/spool/"),
    (r"librdkafka/.*", r"src/source/kafka\w*\.[ch]$"),
    (r"curl/.*", r"src/sink/|tools/spoolctl/"),
    (r"(cjson/)?cJSON\.h", r"src/daemon/(config|control)\w*\.[ch]$|tools/"),
    (r"microhttpd\.h", r"src/source/http\w*\.[ch]$|src/daemon/"),
    (r"uv\.h", r"src/(source|sink|pipeline|daemon)/"),
    # base and codec do no I/O.
    (r"fcntl\.h|dirent\.h|sys/(socket|stat|mman|file|un|uio|statvfs)\.h|netdb\.h|poll\.h",
     r"src/(spool|source|sink|pipeline|daemon)/|tools/"),
]
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+(["<])([^">]+)[">]', re.M)


def layer_of(name):
    parts = name.split("/")
    return parts[1] if parts[0] == "src" else parts[0]


def check(name, text):
    layer = layer_of(name)
    if layer not in BELOW:
        yield 1, f"'{layer}' is no layer"
        return
    for m in INCLUDE.finditer(text):
        line, header = text.count("\n", 0, m.start()) + 1, m.group(2)
        target = header.split("/")[0] if "/" in header else None
        if m.group(1) == '"' and target in BELOW and target != "include":
            allowed = target == layer or target in BELOW[layer] or header in ALSO.get(layer, ())
            if layer == "include":
                yield line, f"a public header includes {header}"
            elif not allowed:
                yield line, f"{layer} includes {header}, which is not below it"
        elif header == "spool.h" and layer in ("base", "codec"):
            yield line, f"{layer} includes spool.h, which is not below it"
        for pattern, owners in OWNERS:
            if re.fullmatch(pattern, header) and not re.match(owners, name):
                yield line, f"{header} belongs to {owners}"


def main():
    names = sorted(
        name for pattern in ("src/**/*", "include/*", "tools/**/*")
        for name in glob.glob(pattern, recursive=True) if name.endswith((".c", ".h")))
    found = 0
    for name in names:
        with open(name, encoding="utf-8") as f:
            for line, what in check(name, f.read()):
                print(f"{name}:{line}: {what}")
                found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
