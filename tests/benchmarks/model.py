"""Speed, memory and masks of a model on this machine:

    python tests/benchmarks/model.py MODEL DATA [--json FILE]

Variants: `eager` is the network as saved, in float32, as a plain torch script would run it, with torch's own threads
and allocator; `fp32` and `auto` are `Predictor` at these precisions. Each variant runs in a process of its own; they
take turns, so that other load on the machine slows down all of them.

Columns, for one image of DATA at a time: fastest and median time; gain over eager (ratio of medians); at the fastest,
arithmetic per second and its share of the peak, the faster of one large matrix product and one large convolution in the
same precision; time to load the model; resident memory; and for the masks of all images of DATA the share of pixels
that differ from eager's and the IoU with them. On a GPU also images per second in batches, from upload to mask.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

ROUNDS, SHOTS = 4, 4
BATCHES = (1, 8, 32)
VARIANTS = ("eager", "fp32", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.model, arguments.data)
        return
    workers = {name: Worker(name, arguments.model, arguments.data) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    peaks: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, worker in workers.items():
            seconds[name] += worker.ask("time")
            peaks[name].append(worker.ask("peak"))
    masks = {name: worker.ask("masks") for name, worker in workers.items()}
    about = {name: worker.ask("about") for name, worker in workers.items()}
    batches = {
        f"batch of {n}": {
            "images/s": rate,
            "% of peak": 100 * about["auto"]["gflop"] * rate / max(peaks["auto"]),
        }
        for n, rate in workers["auto"].ask("batches").items()
    }
    rows = {
        name: {
            "ms": 1000 * min(seconds[name]),
            "median ms": 1000 * median(seconds[name]),
            "gain": median(seconds["eager"]) / median(seconds[name]),
            "gflop/s": about[name]["gflop"] / min(seconds[name]),
            "% of peak": 100 * about[name]["gflop"] / min(seconds[name]) / max(peaks[name]),
            "load ms": 1000 * about[name]["load"],
            "rss MiB": about[name]["rss"] / 2**20,
            "differ %": 100 * differing(masks[name], masks["eager"]),
            "IoU": iou(masks[name], masks["eager"]),
        }
        for name in VARIANTS
    }
    print(f"{about['auto']['device']}, {about['auto']['network']}")
    print(" " * 12 + "".join(f"{column:>12}" for column in rows["eager"]))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{value:12.4g}" for value in row.values()))
    for name, row in batches.items():
        print(f"{name:12}" + "".join(f"{value:12.4g} {column}" for column, value in row.items()))
    if arguments.json:
        results = {"about": about["auto"], "rows": rows} | ({"batches": batches} if batches else {})
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


class Worker:
    """Process of one variant."""

    def __init__(self, name: str, model: Path, data: Path) -> None:
        command = [sys.executable, __file__, str(model), str(data), "--worker", name]
        path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
        environment = os.environ | {"PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, question: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def work(name: str, model: Path, data: Path) -> None:
    """Main loop of a worker: answers each line on stdin (time, masks, batches, peak or about) with a line of JSON."""
    if name == "eager":  # without the settings of OpenMP and malloc
        sys.modules["unet.engines.process"] = ModuleType("unet.engines.process")
    else:
        import unet.engines.process  # noqa: F401  (before torch)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.data import read_folder
    from unet import Predictor
    from unet import checkpoint as checkpoints
    from unet.device import DTYPES, device_name

    images = [sample.image for sample in read_folder(data).samples]
    started = time.perf_counter()
    checkpoint = checkpoints.load(model)
    network = checkpoint.build()
    predictor = Predictor.from_checkpoint(checkpoint, precision="auto" if name == "auto" else "fp32")
    load = time.perf_counter() - started

    @torch.inference_mode()
    def eager(image: Any) -> Any:
        x = checkpoint.preprocessing(image, checkpoint.network.n_channels).tensor().contiguous()[None]
        height, width = checkpoint.preprocessing.padded_size(*image.shape[:2])
        x = torch.nn.functional.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="reflect")
        probabilities = network(x.to(predictor.device)).sigmoid()[0, 0, : image.shape[0], : image.shape[1]]
        return (probabilities > checkpoint.threshold).to(torch.uint8).mul(255).cpu().numpy()

    network.to(predictor.device)
    predict = eager if name == "eager" else predictor.mask
    for _ in range(2):
        predict(images[0])
    for line in sys.stdin:
        answer: Any
        if line.strip() == "time":
            answer = []
            for shot in range(SHOTS):
                started = time.perf_counter()
                predict(images[shot % len(images)])
                answer.append(time.perf_counter() - started)
        elif line.strip() == "masks":
            answer = [predict(image).tobytes().hex() for image in images]
        elif line.strip() == "batches":
            on_gpu = predictor.device.type == "cuda"
            answer = {n: throughput(predictor, images, n) for n in BATCHES if on_gpu}
        elif line.strip() == "peak":
            answer = peak(predictor.device, DTYPES[predictor.precision])
        else:
            with FlopCounterMode(display=False) as counter:
                eager(images[0])
            answer = {
                "gflop": counter.get_total_flops() / 1e9,
                "load": load,
                "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "device": device_name(predictor.device),
                "network": f"base {checkpoint.network.base_channels}, {images[0].shape}",
                "torch": torch.__version__,
            }
        print(json.dumps(answer), flush=True)


def throughput(predictor: Any, images: list[Any], n: int) -> float:
    """Images per second in batches of `n`: the best of some repetitions."""
    predictions = [predictor.start(images[i % len(images)], "mask") for i in range(n)]
    seconds = []
    for _ in range(2 + ROUNDS * SHOTS):  # the first is eager, the second captures the CUDA graph
        for prediction in predictions:
            prediction.restart()
        started = time.perf_counter()
        predictor.compute([prediction.next() for prediction in predictions])
        seconds.append(time.perf_counter() - started)
    return n / min(seconds)


def peak(device: Any, dtype: Any) -> float:
    """GFLOP/s of a large matrix product or convolution, whichever is faster: the best of some repetitions."""
    import torch

    on_gpu = device.type == "cuda"
    side, maps, channels, in_a_row = (8192, 32, 256, 8) if on_gpu else (2048, 1, 128, 1)
    x = torch.rand(maps, channels, 128, 128, device=device).to(dtype, memory_format=torch.channels_last)
    kernels = torch.randn(channels, channels, 3, 3, device=device)
    flop = 2 * 9 * channels**2 * maps * 128**2
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    kernels = kernels.to(dtype, memory_format=torch.channels_last)
    computations = [(2 * side**3, lambda: matrix @ matrix), (flop, lambda: torch.conv2d(x, kernels, padding=1))]
    rates = []
    with torch.inference_mode():
        for _ in range(SHOTS):
            for operations, compute in computations:
                started = time.perf_counter()
                for _ in range(in_a_row):
                    computed = compute()
                computed.flatten()[0].item()  # waits until a GPU is done
                rates.append(in_a_row * operations / (time.perf_counter() - started) / 1e9)
    return max(rates)


def differing(masks: list[str], others: list[str]) -> float:
    """Share of pixels that differ."""
    return float((pixels(masks) != pixels(others)).mean())


def iou(masks: list[str], others: list[str]) -> float:
    """Intersection over union of the foreground, over all images."""
    a, b = pixels(masks) > 0, pixels(others) > 0
    return float((a & b).sum() / (a | b).sum())


def pixels(masks: list[str]) -> Any:
    """(N,) uint8: pixels of masks that were sent as hexadecimal text."""
    import numpy as np

    return np.frombuffer(bytes.fromhex("".join(masks)), np.uint8)


if __name__ == "__main__":
    main()
