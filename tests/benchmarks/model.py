"""How fast a model predicts here:  python tests/benchmarks/model.py MODEL DATA [--json FILE]

Each variant runs in a process of its own, and the variants take turns, so that what else the machine does hits all of
them. `eager` is what a user's script would do: the network as saved, in float32, with threads and allocator as they
are; ONNX Runtime and OpenVINO, if they are installed (`pip install '.[peers]'`), run the same network instead of torch.
Prints for one image of DATA at a time: the fastest and the median time; the gain over eager, median by median; at the
fastest, arithmetic per second and its share of what torch does on the device in the same precision in one large matrix
product or convolution, whichever is faster; the time to load the model, memory, and of the masks of all images of DATA
the share of the pixels that differ from eager's, and the IoU with them. On a GPU then, for several images at a time:
images per second, upload and masks included, and the same share.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

ROUNDS, SHOTS = 4, 4
BATCHES = (1, 8, 32)
OURS = ("eager", "fp32", "auto", "int8")
ENGINES = ("onnxruntime", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=(*OURS, *ENGINES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.model, arguments.data)
        return
    variants = compared()
    workers = {name: Worker(name, arguments.model, arguments.data) for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peaks: dict[str, list[float]] = {name: [] for name in variants}
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
        for name in variants
    }
    print(f"{about['auto']['device']}, {about['auto']['network']}")
    print(" " * 12 + "".join(f"{column:>12}" for column in rows["eager"]))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{value:12.4g}" for value in row.values()))
    for name, row in batches.items():
        print(f"{name:12}" + "".join(f"{value:12.4g} {column}" for column, value in row.items()))
    if arguments.json:
        found = {"about": about["auto"], "rows": rows} | ({"batches": batches} if batches else {})
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def compared() -> tuple[str, ...]:
    """The other engines, and int8, are compared on CPUs only."""
    import torch

    return OURS[:3] if torch.cuda.is_available() else (*OURS, *(name for name in ENGINES if find_spec(name)))


class Worker:
    def __init__(self, name: str, model: Path, data: Path) -> None:
        command = [sys.executable, __file__, str(model), str(data), "--worker", name]
        path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
        environment = os.environ | {"PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def work(name: str, model: Path, data: Path) -> None:
    """Answers a JSON line to each line: time, masks, batches, peak, about."""
    if name == "eager":
        sys.modules["unet.process"] = ModuleType("unet.process")  # threads and memory as in anybody's script
    else:
        import unet.process  # noqa: F401  (before torch)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.data import read_folder
    from unet import Predictor
    from unet import checkpoint as checkpoints
    from unet.device import device_name

    images = [sample.image for sample in read_folder(data).samples]
    started = time.perf_counter()
    checkpoint = checkpoints.load(model)
    network = checkpoint.build()
    predictor = Predictor.from_checkpoint(checkpoint, precision=name if name in ("fp32", "int8") else "auto")
    load = time.perf_counter() - started
    dtype = torch.float32 if name in ("eager", "onnxruntime") else predictor.dtype  # OpenVINO chooses as `auto` does
    if name == "int8":
        dtype = torch.uint8

    @torch.inference_mode()
    def eager(image: Any, compute: Any = network) -> Any:
        x = checkpoint.preprocessing(image, checkpoint.network.n_channels).tensor().contiguous()[None]
        height, width = checkpoint.preprocessing.padded_size(*image.shape[:2])
        x = torch.nn.functional.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="reflect")
        probabilities = compute(x.to(predictor.device)).sigmoid()[0, 0, : image.shape[0], : image.shape[1]]
        return (probabilities > checkpoint.threshold).to(torch.uint8).mul(255).cpu().numpy()

    network.to(predictor.device)
    if name in ENGINES:
        compute = engine(name, network, checkpoint, images[0])
        predict = partial(eager, compute=compute)
    else:
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
            answer = peak(predictor.device, dtype)
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


def engine(name: str, network: Any, checkpoint: Any, image: Any) -> Any:
    """The network in another engine, for images of this size: (1, C, H, W) tensor -> logits."""
    import torch

    example = torch.zeros(
        1, checkpoint.network.n_channels, *checkpoint.preprocessing.padded_size(*image.shape[:2]), dtype=torch.float32
    )
    network = network.cpu()
    if name == "openvino":
        import openvino

        compiled = openvino.compile_model(openvino.convert_model(network, example_input=example), "CPU")
        return lambda x: torch.from_numpy(compiled(x.numpy())[0])
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(network, (example,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def throughput(predictor: Any, images: list[Any], n: int) -> float:
    """Images per second, `n` at a time: the best of a few."""
    predictions = [predictor.start(images[i % len(images)], "mask") for i in range(n)]
    seconds = []
    for _ in range(2 + ROUNDS * SHOTS):  # the first time step by step, the second time recorded
        for prediction in predictions:
            prediction.restart()
        started = time.perf_counter()
        predictor.compute([prediction.next() for prediction in predictions])
        seconds.append(time.perf_counter() - started)
    return n / min(seconds)


def peak(device: Any, dtype: Any) -> float:
    """GFLOP/s of large matrix products or convolutions, the best of a few; of bytes, of convolutions only."""
    import torch

    from unet.int8 import Convolution

    on_gpu = device.type == "cuda"
    side, maps, channels, in_a_row = (8192, 32, 256, 8) if on_gpu else (2048, 1, 128, 1)
    x = torch.rand(maps, channels, 128, 128, device=device).to(dtype, memory_format=torch.channels_last)
    kernels = torch.randn(channels, channels, 3, 3, device=device)
    flop = 2 * 9 * channels**2 * maps * 128**2
    computations: list[tuple[int, Any]]
    if dtype == torch.uint8:
        convolution = Convolution(kernels)
        computations = [(flop, lambda: convolution(x))]
    else:
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        kernels = kernels.to(dtype, memory_format=torch.channels_last)
        computations = [(2 * side**3, lambda: matrix @ matrix), (flop, lambda: torch.conv2d(x, kernels, padding=1))]
    rates = []
    with torch.inference_mode():
        for _ in range(SHOTS):
            for flop, compute in computations:
                started = time.perf_counter()
                for _ in range(in_a_row):
                    computed = compute()
                computed.flatten()[0].item()  # waits for a GPU
                rates.append(in_a_row * flop / (time.perf_counter() - started) / 1e9)
    return max(rates)


def differing(masks: list[str], others: list[str]) -> float:
    """The share of bytes that differ."""
    return float((pixels(masks) != pixels(others)).mean())


def iou(masks: list[str], others: list[str]) -> float:
    """Of the foreground, over all images."""
    a, b = pixels(masks) > 0, pixels(others) > 0
    return float((a & b).sum() / (a | b).sum())


def pixels(masks: list[str]) -> Any:
    import numpy as np

    return np.frombuffer(bytes.fromhex("".join(masks)), np.uint8)


if __name__ == "__main__":
    main()
