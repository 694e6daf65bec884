"""Seeded damage to the files of a result, as a disk, a bug or an attacker would do it."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from random import Random

BOMBS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "{{ 'a' * 10**9 }}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{{ messages.__class__.__mro__[1].__subclasses__() }}{% for m in messages %}",
)


def deep(depth: int):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    7,
    10**6,
    10**9,
    10**30,
    0.5,
    1e308,
    float("nan"),
    "",
    "x" * 10_000,
    "../../x",
    "\ud800",
    [],
    {},
    ["a", "a"],
    deep(400),
    {"a": {"b": 1}},
)


def json_places(value, path=()):
    """Yield the path of every value in a JSON document, not deep into long lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(children)[:40]:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from json_places(child, (*path, key))


def change_json(file: Path, random: Random) -> str:
    value = json.loads(file.read_text(encoding="utf-8"))
    *parents, key = random.choice(list(json_places(value)))
    inside = value
    for parent in parents:
        inside = inside[parent]
    way = random.choice(["replace"] * 5 + ["remove", "rename"])
    if way == "remove":
        del inside[key]
    elif way == "rename" and isinstance(inside, dict):
        inside[f"{key}x"] = inside.pop(key)
    else:
        inside[key] = random.choice(VALUES)
        way = f"to {inside[key]!r:.20}"
    file.write_text(json.dumps(value), encoding="utf-8")
    return f"{'.'.join(map(str, [*parents, key]))} {way}"


def flip(file: Path, random: Random, start: int = 0, stop: int | None = None) -> str:
    content = bytearray(file.read_bytes())
    place = random.randrange(start, min(stop or len(content), len(content)))
    content[place] ^= 1 << random.randrange(8)
    file.write_bytes(content)
    return f"byte {place}"


def header_size(file: Path) -> int:
    return 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]


def change_header(file: Path, random: Random) -> str:
    """Change a value in the header of safetensors, whose length stays right."""
    content = file.read_bytes()
    size = header_size(file)
    header = json.loads(content[8:size])
    name = random.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match random.randrange(7):
        case 0:
            entry["dtype"] = random.choice(["I32", "U8", "F8_E4M3", "BF16", "X"])
        case 1:
            entry["shape"] = entry["shape"][::-1]
        case 2:
            entry["shape"] = [random.choice([0, -1, 10**9, 10**30, 2]), *entry["shape"][1:]]
        case 3:
            entry["data_offsets"][random.randrange(2)] += random.choice([-4, 4, 10**12])
        case 4:
            header[name + ".x"] = header.pop(name)
        case 5:
            del header[name]
        case 6:
            header[name] = random.choice(VALUES)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[size:])
    return f"header, {name}"


def not_finite(file: Path, random: Random) -> str:
    content = bytearray(file.read_bytes())
    place = header_size(file)
    place += 4 * random.randrange((len(content) - place) // 4)
    content[place : place + 4] = struct.pack("<f", random.choice([float("nan"), float("inf")]))
    file.write_bytes(content)
    return f"not finite at {place}"


def replace_file(file: Path, random: Random) -> str:
    file.unlink()
    way = random.choice(["folder", "dangling", "/etc/passwd", "/dev/zero", "fifo", "gone", "empty"])
    match way:
        case "folder":
            file.mkdir()
        case "dangling":
            file.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(file)
        case "empty":
            file.touch()
        case "gone":
            pass
        case _:
            file.symlink_to(way)
    return way


class Canary:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def add_file(folder: Path, other: Path, random: Random, canary: Path) -> str:
    """Add a file that a library may read."""
    name = random.choice(
        ["adapter_model.bin", "pytorch_model.bin", "training_args.bin", "code", "templates"]
        + [
            "added_tokens.json",
            "other weights",
            "generation_config.json",
            "special_tokens_map.json",
        ]
    )
    match name:
        case "code":
            (folder / "modeling.py").write_text(f"import os; os.mkdir({str(canary)!r})")
            file = folder / "tokenizer_config.json"
            text = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": "modeling.T"}}
            file.write_text(json.dumps(text))
        case "templates":
            (folder / "additional_chat_templates").mkdir()
            (folder / "additional_chat_templates" / "default.jinja").write_text(BOMBS[0])
        case "other weights":
            for file in other.glob("*model.safetensors"):
                shutil.copy(file, folder)
            if (other / "config.json").exists():
                shutil.copy(other / "config.json", folder)
        case "added_tokens.json" | "generation_config.json" | "special_tokens_map.json":
            values = [{"[X]": 10**9}, [], {"eos_token": 7}, {"num_beams": 10**6}, {"a": deep(300)}]
            (folder / name).write_text(json.dumps(random.choice(values)))
        case _:
            (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    return f"extra {name}"


def mutate(folder: Path, other: Path, random: Random, canary: Path) -> tuple[str, str]:
    """Damage a copy of a result; `other` is a result of another kind. Return the file and how."""
    files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors", ".jinja"))
    jsons = [file for file in files if file.suffix == ".json"]
    weights = [file for file in files if file.suffix == ".safetensors"]
    kinds = ["flip"] * 4 + ["truncate"] * 2 + ["json"] * 10 + ["header"] * 4
    kind = random.choice(kinds + ["nan", "swap", "swap", "replace", "replace", "add", "template"])
    file = random.choice(files)
    match kind:
        case "flip":
            return file.name, flip(file, random)
        case "truncate":
            size = file.stat().st_size
            os.truncate(file, random.randrange(size))
            return file.name, "truncated"
        case "json":
            file = random.choice(jsons)
            return file.name, change_json(file, random)
        case "header":
            file = random.choice(weights)
            if random.random() < 0.4:
                return file.name, "header, " + flip(file, random, 0, header_size(file))
            return file.name, change_header(file, random)
        case "nan":
            file = random.choice(weights)
            return file.name, not_finite(file, random)
        case "swap":
            shared = [file for file in files if (other / file.name).exists()]
            file = random.choice(shared)
            shutil.copy(other / file.name, file)
            return file.name, "of another result"
        case "replace":
            return file.name, replace_file(file, random)
        case "add":
            return "", add_file(folder, other, random, canary)
    template, place = random.choice(BOMBS), random.choice(["file", "config"])
    if place == "file":
        (folder / "chat_template.jinja").write_text(template)
    else:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        file = folder / "tokenizer_config.json"
        text = json.loads(file.read_text()) | {"chat_template": template}
        file.write_text(json.dumps(text))
    return "chat_template.jinja", f"{template:.30} in the {place}"
