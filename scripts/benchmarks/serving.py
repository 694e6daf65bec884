"""Load `gpt2-recipes serve` with 1, 8 and 32 clients, with and without batches, and print a table.

    python scripts/benchmarks/serving.py RESULT ROWS [--seconds 6] [--repeats 3] [--wait-ms 0 5]

RESULT is a classifier or an answerer, ROWS a JSONL or CSV file with its columns. Each client posts
a row, reads the answer and posts the next one. The servers run at the same time and take turns. The
load is made on this machine too, by one process, whose share of the cores the numbers have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = (1, 8, 32)


def start(result: str, *flags: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server on a free port; return it with its address, once it can answer."""
    words = ["-m", "pipelines", "serve", result, "--port", "0", *flags]
    server = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    if " answers at " not in line:
        raise SystemExit(f"the server ended with {server.wait()}.")
    return server, line.split(" answers at ")[1].removesuffix("/predict\n")


async def client(url: str, bodies: list[bytes], end: float, seconds: list[float]) -> None:
    """Post a row after the other on one connection until `end`; append how long each took."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    while time.perf_counter() < end:
        body = random.choice(bodies)
        head = f"POST /predict HTTP/1.1\r\nHost: {address.netloc}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        begun = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(answer.decode())
        seconds.append(time.perf_counter() - begun)
    writer.close()


async def load(url: str, bodies: list[bytes], num_clients: int, duration: float) -> list[float]:
    """Return the seconds of each request of so many clients."""
    seconds: list[float] = []
    end = time.perf_counter() + duration
    await asyncio.gather(*(client(url, bodies, end, seconds) for _ in range(num_clients)))
    return seconds


def main() -> None:
    """Measure, and print the medians of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wait-ms", type=float, nargs="*", default=[0, 5])
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pipelines.data.load import read_file

    rows = read_file(given.rows).rows[:512]
    bodies = [json.dumps({"rows": [row]}).encode() for row in rows]
    variants = {"each alone": ("--batch-size", "1")}
    variants |= {f"batches, {w:g} ms": ("--max-wait-ms", str(w)) for w in given.wait_ms}
    servers = {name: start(given.result, *flags) for name, flags in variants.items()}
    found: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    try:
        for repeat in range(given.repeats + 1):  # the first one warms up
            for num_clients in CLIENTS:
                for name, (_, url) in servers.items():
                    duration = given.seconds if repeat else 1
                    seconds = sorted(asyncio.run(load(url, bodies, num_clients, duration)))
                    p50, p99 = (seconds[int(len(seconds) * q)] for q in (0.5, 0.99))
                    numbers = len(seconds) / duration, 1000 * p50, 1000 * p99
                    if repeat:
                        found.setdefault((num_clients, name), []).append(numbers)
    finally:
        for server, _ in servers.values():
            server.terminate()
            server.wait()
    print("| clients | server | rows/s | p50 | p99 |\n|---|---|---|---|---|")
    for (num_clients, name), each in found.items():
        rate, p50, p99 = map(statistics.median, zip(*each, strict=True))
        print(f"| {num_clients} | {name} | {rate:.0f} | {p50:.1f} ms | {p99:.1f} ms |")


if __name__ == "__main__":
    main()
