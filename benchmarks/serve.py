"""`gafx serve` under concurrent requests: what was answered, refused and lost, how fast, and in how much memory.

    python benchmarks/serve.py --model outputs/RUN --audio FOLDER [--requests 200] [--rounds 3]

starts the service on a free port of 127.0.0.1. In each round every client sends one file of FOLDER, all at the same
time, and repeats it after the time that a 503 asks for; every tenth client sends a file over the limit of bytes
instead. A connection that ends without an answer counts as lost. The answers are compared with those of `gafx.predict`
for one file at a time, rounded to eight decimals as in the JSON text.
"""

import argparse
import http.client
import json
import os
import queue
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import gafx
from gafx.deploy.files import find_files

MAX_MB = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--audio", required=True, help="folder of files to send")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    files = find_files([parsed.audio]).files
    files = [files[number * len(files) // parsed.requests % len(files)] for number in range(parsed.requests)]
    model = gafx.load(parsed.model)
    expected = {file: dict(found.top()) for file in set(files) for found in gafx.predict(file, model)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gafx", "serve", "--model", parsed.model, "--max-mb", str(MAX_MB)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            command += ["--port", str(free.getsockname()[1])]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder})
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline().split("/")[2].rpartition(":")[2])
            send(port, Path(files[0]).read_bytes())
            print(f"idle after one request: {peak(service.pid):.0f} MiB at most", flush=True)
            for number in range(parsed.rounds):
                one_round(number + 1, port, files, expected)
                print(f"  peak memory so far {peak(service.pid):.0f} MiB", flush=True)
            left = [path for path in Path(folder).rglob("*") if path.is_file()]
            service.send_signal(signal.SIGTERM)
            begin = time.perf_counter()
            status = service.wait(60)
            print(
                f"uploads left: {len(left)}; ended by SIGTERM in {time.perf_counter() - begin:.1f} s, status {status}"
            )
            print(f"temporary files left: {len(list(Path(folder).iterdir()))}")
        finally:
            service.kill()


def peak(process: int) -> float:
    """Largest resident memory of a process so far in MiB (Linux)."""
    return int(Path(f"/proc/{process}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def one_round(number: int, port: int, files: list[str], expected: dict[str, dict[str, float]]) -> None:
    results: queue.Queue[tuple[int, int, float, str, bytes]] = queue.Queue()
    large = bytes(MAX_MB * 1_000_000 + 100_000)
    start = threading.Barrier(len(files) + 1)

    def client(position: int, file: str) -> None:
        body = large if position % 10 == 9 else Path(file).read_bytes()
        start.wait()
        begin, waits = time.perf_counter(), 0
        while True:
            try:
                status, answer, wait = send(port, body)
            except (OSError, http.client.HTTPException) as error:
                status, answer, wait = 0, repr(error).encode(), 0
            if status != 503:
                break
            waits += 1
            time.sleep(wait * random.uniform(0.8, 1.2))
        results.put((status, waits, time.perf_counter() - begin, file, answer))

    threads = [threading.Thread(target=client, args=pair) for pair in enumerate(files)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    found = list(results.queue)
    count = Counter(status for status, *_ in found)
    times = sorted(seconds for status, _, seconds, *_ in found if status == 200)
    difference = max(
        abs(value - round(expected[file][label], 8))
        for status, _, _, file, answer in found
        if status == 200
        for label, value in json.loads(answer)["probabilities"].items()
    )
    print(
        f"round {number}: {len(found)} clients: {count[200]} labelled, {count[413]} over the limit (413), "
        f"{count[0]} lost, others {sum(count.values()) - count[200] - count[413] - count[0]}; "
        f"{sum(waits for _, waits, *_ in found)} times 503; {took:.1f} s, {count[200] / took:.1f} files/s; time to the "
        f"answer, waiting after 503 included: median {statistics.median(times):.2f} s, longest {times[-1]:.2f} s; "
        f"largest difference from gafx.predict {difference:.1e}"
    )  # fmt: skip
    for status, *_, answer in found:
        if status not in (200, 413):
            print(f"  {status}: {answer[:200]!r}")


def send(port: int, body: bytes) -> tuple[int, bytes, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "audio/ogg"})
        response = connection.getresponse()
        return response.status, response.read(), float(response.headers.get("Retry-After", 1))
    finally:
        connection.close()


if __name__ == "__main__":
    main()
