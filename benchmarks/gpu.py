"""The first hour on a GPU in three minutes: is everything right there, and how fast is it?

`make gpu`, or `python benchmarks/gpu.py`, on one GPU or several, without network. Every part is on its own: one that
fails is a line of the table, its traceback is in the log, and the rest runs. The exit status is the number of parts
that are wrong. When time is short, measurements are left out, never checks. `--device cpu --toy` runs the same code in
half a minute anywhere.
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, by the first product on a GPU


def main(argv: list[str] | None = None, parts=None) -> int:
    """Runs all parts; gives the number of those that are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda, cpu, ...; the accelerator that torch finds by default")
    parser.add_argument("--toy", action="store_true", help="toy sizes: whether the parts run, not how fast")
    parser.add_argument("--minutes", type=float, default=8, help="no measurement starts after them (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of table, JSON and log")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()

    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if arguments.device is None and found is None:
        parser.error("torch finds no accelerator here; --device cpu --toy tries the parts without one")
    from on_gpu.models import Machine, Skipped

    if parts is None:
        from on_gpu.fast import MEASUREMENTS
        from on_gpu.right import CHECKS

        parts = [(check, False) for check in CHECKS] + [(measure, True) for measure in MEASUREMENTS]
    device = torch.device(arguments.device or found)
    if device.type == "cpu" and found is not None:
        parser.error(
            "--device cpu on a machine with a GPU: hide it, CUDA_VISIBLE_DEVICES= python benchmarks/gpu.py ..."
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # else fp32 is not fp32
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, wrong, described = [], 0, machine_of(torch, device)
    with tempfile.TemporaryDirectory() as folder, open(arguments.out / "log.txt", "w") as log:
        machine = Machine(device, arguments.toy, Path(folder))
        for part, measures in parts:
            title, begun = part.__doc__.splitlines()[0].rstrip("."), time.perf_counter()
            row = {"part": part.__name__, "measures": measures, "title": title, "state": "ok", "said": "", "values": []}
            if measures and begun - started > 60 * arguments.minutes:
                row |= {"state": "left out", "said": f"{arguments.minutes:g} minutes are over"}
            else:
                try:
                    with contextlib.redirect_stdout(log):
                        said = part(machine)
                    row["values" if measures else "said"] = said
                except Skipped as reason:
                    row |= {"state": "skipped", "said": str(reason)}
                except (Exception, SystemExit) as error:
                    wrong += 1
                    first = (str(error).splitlines() or [""])[0]
                    row |= {"state": "WRONG", "said": f"{type(error).__name__}: {first}"}
                    log.write(f"{title}\n{traceback.format_exc()}\n")
                gc.collect()  # models are in cycles
                if machine.is_cuda:
                    with contextlib.suppress(RuntimeError):  # of a device that a part has left unusable
                        torch.cuda.empty_cache()
            row["seconds"] = time.perf_counter() - begun
            rows.append(row)
            print(lines(row), flush=True)
            # After every part: what is killed keeps what it has found.
            metadata = described | {"toy": arguments.toy, "seconds": time.perf_counter() - started}
            (arguments.out / "gpu.json").write_text(json.dumps(metadata | {"parts": rows}, indent=1))
            (arguments.out / "gpu.md").write_text(markdown(metadata, rows))
    print(f"\n{wrong} of {len(rows)} parts are wrong; table, JSON and log are in {arguments.out}/")
    return wrong


def lines(row: dict) -> str:
    """A part for the terminal."""
    head = f"{row['state']:8} {row['seconds']:5.1f} s  {row['title']}"
    values = [f"{'':18}{what}: {value:,.3g} {unit}" for what, value, unit in row["values"]]
    return "\n".join([head, *([f"{'':18}{row['said']}"] if row["said"] else []), *values])


def machine_of(torch, device) -> dict:
    """Names and versions of what the numbers hold for."""
    from importlib.metadata import version

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    count = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0))
    packages = {package: version(package) for package in ("torch", "transformers", "accelerate", "peft", "timm")}
    return {"device": name, "count": count, "python": platform.python_version(), "versions": packages}


def markdown(metadata: dict, rows: list[dict]) -> str:
    """The table as docs/benchmarks.md has it."""
    versions = ", ".join(f"{name} {number}" for name, number in metadata["versions"].items())
    text = f"{metadata['device']} ({metadata['count']}), Python {metadata['python']}, {versions}; "
    text += f"{metadata['seconds']:.0f} s.\n\n"
    text += "| check | state | found |\n|---|---|---|\n"
    text += "".join(f"| {r['title']} | {r['state']} | {r['said']} |\n" for r in rows if not r["measures"])
    text += "\n| measurement | value | |\n|---|---:|---|\n"
    for row in (r for r in rows if r["measures"]):
        values = row["values"] or [(row["title"], row["said"] or row["state"], "")]
        for what, value, unit in values:
            text += f"| {what} | {value if isinstance(value, str) else f'{value:,.3g}'} | {unit} |\n"
    return text


if __name__ == "__main__":
    raise SystemExit(main())
