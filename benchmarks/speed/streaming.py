"""Cutting half a model out of 8 GB of weight files: memory, and speed against copying the same bytes with cp.

    python benchmarks/speed/streaming.py [--gigabytes 8] [--rounds 3] [--folder DIR]

A random Llama in bfloat16, in files of 2 GB; the subnet has half of the neurons and heads of every layer, so rows and
columns are cut. Each extraction runs in a process of its own, which reports its peak resident memory, less that of a
bare interpreter, and less that of one that has imported what the extraction imports. Extraction (cutting, writing,
hashing) and verification are timed apart; cp copies the extracted files to a new folder. They take turns, in
alternating order: warm, with what is read in the page cache, and cold, with its pages dropped before each
(posix_fadvise). What was written is flushed to disk between turns, outside of the time that counts.

Then a plan of a 70-billion-parameter configuration: 24 uniform subnets, in this process and by `elastic plan`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

import elastic
from elastic.record import CheckpointRecord
from elastic.folder import sha256
from elastic.nested import meta_model
from elastic.cost.plan import make_plan
from elastic.space import SearchSpace, Subnet
from elastic.streaming.writer import write_file

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 3072, 8192, 24, 8, 32000
FILE_BYTES = 2 * 10**9

EXTRACT = """
import json, sys, time
from pathlib import Path
import elastic.streaming.check
from elastic.cost.plan import make_plan
from elastic.space import SearchSpace, Subnet
from elastic.streaming import stream_extraction

def peak():  # of this program alone; ru_maxrss begins with that of the process that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

imported = peak()
folder, output, subnet = Path(sys.argv[1]), Path(sys.argv[2]), Subnet.from_dict(json.loads(sys.argv[3]))
start, written = time.perf_counter(), []

def on_progress(done, total):
    if 2 * done >= total and not written:
        written.append((time.perf_counter() - start, peak()))

stream_extraction(folder, subnet, output, max_shard_size=2 * 10**9, on_progress=on_progress)
seconds = time.perf_counter() - start
print(json.dumps({"extract_s": written[0][0], "extract_and_verify_s": seconds, "imported": imported,
                  "extract_peak": written[0][1], "peak": peak()}))
"""
BARE = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"

LLAMA_70B = LlamaConfig(
    num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, dtype="bfloat16",
)  # fmt: skip


def make_checkpoint(folder: Path, num_bytes: float) -> Subnet:
    """Write a random universal Llama of about this size, and return the subnet of half its neurons and heads."""
    layer = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // HEADS * KV_HEADS + 3 * HIDDEN * FFN)
    num_layers = round((num_bytes - 4 * VOCAB * HIDDEN) / layer)
    config = LlamaConfig(
        num_hidden_layers=num_layers, hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=VOCAB, dtype="bfloat16",
    )  # fmt: skip
    model = meta_model(LlamaForCausalLM, config).to(torch.bfloat16)
    model.save_pretrained(folder, state_dict={})
    files: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
    filled = 0
    for name, tensor in model.state_dict().items():
        filled += 2 * tensor.numel()
        if filled > FILE_BYTES:
            files.append({})
            filled = 2 * tensor.numel()
        files[-1][name] = (tensor.dtype, tuple(tensor.shape))

    def random(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape).normal_(0, 0.02).to(torch.bfloat16)

    hashes = {}
    for index, layout in enumerate(files, 1):
        path = folder / f"model-{index:05}-of-{len(files):05}.safetensors"
        hashes[path.name] = write_file(path, layout, lambda name, layout=layout: [random(layout[name][1])])
    record = CheckpointRecord(
        kind="universal", family="llama", elastic_version=elastic.__version__, input_shapes={"input_ids": [1, 128]},
        files=hashes, space={"ffn": [0.5, 1.0], "heads": [0.5, 1.0]},
    )  # fmt: skip
    (folder / "elastic.json").write_text(record.model_dump_json())
    return Subnet(ffn=(FFN // 2,) * num_layers, heads=(HEADS // 2,) * num_layers)


def settle(folder: Path, *, cached: bool) -> None:
    """Flush a folder's files to disk, and have their pages in the page cache, or not."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if cached:
                while file.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def extract(universal: Path, subnet: Subnet, output: Path) -> dict[str, float]:
    command = [sys.executable, "-c", EXTRACT, str(universal), str(output), json.dumps(subnet.to_dict())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout)


def copy(source: Path, target: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    return time.perf_counter() - start


def plan_seconds(folder: Path) -> tuple[float, float]:
    """Return how long the plan takes, and how long the whole command, most of which is importing libraries."""
    LLAMA_70B.architectures = ["LlamaForCausalLM"]
    LLAMA_70B.save_pretrained(folder)
    space = {"ffn": (0.25, 0.5, 0.75, 1.0), "heads": (0.5, 1.0), "layers": (40, 60, 80)}
    start = time.perf_counter()
    make_plan(LlamaForCausalLM, LLAMA_70B, SearchSpace(**space), {"input_ids": (1, 128)})
    planned = time.perf_counter() - start
    command = [sys.executable, "-m", "elastic.cli", "plan", str(folder), "--space", json.dumps(space), "--json"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    return planned, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made, and removed; the system's by default")
    arguments = parser.parse_args()
    bare = 1024 * int(subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True, text=True).stdout)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        base = Path(name)
        free = shutil.disk_usage(base).free
        if free < 2.5e9 * arguments.gigabytes:
            sys.exit(f"{base} has {free / 1e9:.0f} GB free; {2.5 * arguments.gigabytes:.0f} GB are needed.")
        universal, kept, output, copied = (base / part for part in ("universal", "kept", "output", "copied"))
        plans = [plan_seconds(base / "llama-70b") for _ in range(3)]
        planned, command = (statistics.median(column) for column in zip(*plans, strict=True))
        print(f"plan of 70B: {planned:.2f} s; the command with its imports: {command:.1f} s")
        universal.mkdir()
        subnet = make_checkpoint(universal, 1e9 * arguments.gigabytes)
        extract(universal, subnet, kept)
        assert all(sha256(path) == digest for path, digest in _recorded(kept).items())
        kept_bytes = sum(path.stat().st_size for path in kept.glob("*.safetensors"))
        for round_ in range(2 * arguments.rounds):
            cached, swap = round_ % 2 == 0, round_ // 2 % 2
            seen: dict[str, float] = {}
            for turn in ("cp", "elastic")[:: -1 if swap else 1]:
                settle(universal if turn == "elastic" else kept, cached=cached)
                if turn == "elastic":
                    seen |= extract(universal, subnet, output)
                    settle(output, cached=False)
                    shutil.rmtree(output)
                else:
                    seen["cp_s"] = copy(kept, copied)
                    settle(copied, cached=False)
                    shutil.rmtree(copied)
            rows.append(
                {
                    "source_cached": cached,
                    "kept_gb": round(kept_bytes / 1e9, 2),
                    **{name: round(seen[name], 2) for name in ("cp_s", "extract_s", "extract_and_verify_s")},
                    "speed_of_cp": round(seen["cp_s"] / seen["extract_s"], 2),
                    "speed_of_cp_with_verification": round(seen["cp_s"] / seen["extract_and_verify_s"], 2),
                    **{
                        f"{what}_mb_above_{name}": round((seen[key] - base_bytes) / 1e6)
                        for what, key in (("extract", "extract_peak"), ("verify", "peak"))
                        for name, base_bytes in (("python", bare), ("imports", seen["imported"]))
                    },
                    "plan_70b_s": round(planned, 2),
                    "plan_70b_command_s": round(command, 2),
                    "load_of_machine": round(os.getloadavg()[0], 1),
                }
            )
            print(rows[-1], flush=True)
            write_csv(Path(__file__).parents[1] / "results" / "streaming.csv", rows)
    for cached in (True, False):
        of = [row for row in rows if row["source_cached"] is cached]
        print(
            f"{'warm' if cached else 'cold'}: {statistics.median(row['speed_of_cp'] for row in of):.2f} of the speed "
            f"of cp, {statistics.median(row['speed_of_cp_with_verification'] for row in of):.2f} with verification"
        )
    print(f"peak {max(row['verify_mb_above_python'] for row in rows)} MB above a bare interpreter")


def _recorded(folder: Path) -> dict[Path, str]:
    return {
        folder / name: digest for name, digest in json.loads((folder / "elastic.json").read_text())["files"].items()
    }


if __name__ == "__main__":
    main()
