"""POST /segment, through a real client."""

import gzip
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from conftest import Serve, picture, png
from fastapi.testclient import TestClient
from PIL import Image

from service.admission import PixelBudget
from service.app import create_app
from service.queue import Job, Queue
from service.settings import ServeSettings
from trainer.data import sample
from unet import Predictor, imaging
from unet import checkpoint as checkpoints
from unet.imaging import write_tiff
from unet.outputs import Legend
from unet.outputs.labels import find_objects
from unet.pixels import Preprocessing
from unet.prediction import DOUBT, Prediction

Make = Callable[..., Path]
IMAGE, LABEL = sample.generate(np.random.default_rng(99), size=100)


def problem(answer: object, status: int) -> str:
    assert answer.status_code == status, answer.text  # type: ignore[attr-defined]
    assert answer.headers["content-type"] == "application/problem+json"  # type: ignore[attr-defined]
    body = answer.json()  # type: ignore[attr-defined]
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    return body["detail"]  # type: ignore[no-any-return]


def tiff(image: np.ndarray) -> bytes:
    """A TIFF of any number of channels."""
    file = BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", planarconfig="contig" if image.ndim == 3 else None)
    return file.getvalue()


def test_the_mask_is_the_predictors_and_finds_the_cells(client: TestClient, trained: Path) -> None:
    answer = client.post("/segment", files={"file": ("cells.png", png(IMAGE), "image/png")})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    mask = picture(answer.content)
    assert mask.shape == IMAGE.shape
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, Predictor.load(trained / "best_model.pth", device="cpu").mask(IMAGE))
    assert (mask == LABEL).mean() > 0.9


@pytest.mark.parametrize(
    "media_type", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", None]
)
def test_the_body_itself_may_be_the_image(client: TestClient, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    raw = client.post("/segment", content=png(IMAGE), headers=headers)
    form = client.post("/segment", files={"file": png(IMAGE)})
    assert raw.status_code == 200
    assert raw.content == form.content


def test_probability_and_threshold(client: TestClient, trained: Path) -> None:
    expected = Predictor.load(trained / "best_model.pth", device="cpu")(IMAGE)
    grey = picture(client.post("/segment?output=probability", content=png(IMAGE)).content)
    np.testing.assert_array_equal(grey, np.rint(expected * 255))
    mask = picture(client.post("/segment?threshold=0.9", content=png(IMAGE)).content)
    np.testing.assert_array_equal(mask, np.where(expected > 0.9, 255, 0))
    ground = client.post("/segment?output=probability&class=background", content=png(IMAGE)).content
    np.testing.assert_array_equal(picture(ground), np.rint((1 - expected) * 255))
    said = problem(client.post("/segment", files={"file": png(IMAGE)}, data={"class": "foreground"}), 422)
    assert said == "class: expected with the output probability only"


@pytest.mark.parametrize("n_classes", [1, 3])
def test_labels(make_checkpoint: Make, serve: Serve, n_classes: int) -> None:
    """The ids that the predictor's probabilities give, at the model's own threshold or the request's; of a model that
    has learned borders (three channels) as well."""
    path = make_checkpoint(n_classes=n_classes)
    checkpoint = checkpoints.load(path)
    preprocessing = replace(checkpoint.preprocessing, scale=0.5)
    classes = {"class_values": (0, 255), "class_names": ("ground", "cell"), "class_colours": ()}
    told = {**classes, "objects": True, "preprocessing": preprocessing} if n_classes == 3 else {}
    checkpoints.save(replace(checkpoint, min_area=5, **told), path)
    predictor = Predictor.load(path, device="cpu")
    probabilities = predictor.predict(IMAGE, "objects")
    threshold = round(float(np.quantile(predictor(IMAGE), 0.7)), 4)  # few pixels: several objects
    with serve(model=path) as client:
        for query, value in (("", None), (f"&threshold={threshold}", threshold)):
            ids = picture(client.post(f"/segment?output=labels{query}", content=png(IMAGE)).content)
            np.testing.assert_array_equal(ids, find_objects(probabilities, Legend.of(predictor, value)))
            assert ids.dtype == np.uint16
        assert ids.max() > 1
        assert np.bincount(ids.ravel()).min() >= 5


def test_test_time_augmentation(client: TestClient, trained: Path) -> None:
    expected = Predictor.load(trained / "best_model.pth", device="cpu").mask(IMAGE, tta=True)
    np.testing.assert_array_equal(picture(client.post("/segment?tta=true", content=png(IMAGE)).content), expected)


def test_options_may_be_fields_of_the_form(client: TestClient) -> None:
    def post(query: str, **fields: str) -> bytes:
        answer = client.post(f"/segment{query}", files={"file": png(IMAGE)}, data=fields)
        assert answer.status_code == 200, answer.text
        return answer.content

    assert post("", output="probability") == post("?output=probability")
    assert post("?output=probability", threshold="0.9", output="mask") == post("?threshold=0.9")  # the form's wins
    refused = client.post("/segment", files={"file": png(IMAGE)}, data={"treshold": "0.9"})
    assert problem(refused, 422) == "treshold: expected output, threshold, tta, class or page, found an unknown option"
    refused = client.post("/segment?Output=mask", files={"file": png(IMAGE)})
    assert problem(refused, 422).startswith("Output: expected output, threshold, ")
    refused = client.post("/segment", files={"file": png(IMAGE)}, data={"threshold": "2"})
    assert "threshold: input should be less than or equal to 1, found '2'" in problem(refused, 422)


def test_headers(client: TestClient) -> None:
    answer = client.post("/segment", content=png(IMAGE), headers={"X-Request-Id": "my-request-7"})
    assert answer.headers["x-request-id"] == "my-request-7"
    assert answer.headers["x-model-id"] == client.get("/health").json()["model"]["id"]
    timing = r"queue;dur=[\d.]+, decode;dur=[\d.]+, infer;dur=[\d.]+, encode;dur=[\d.]+"
    assert re.fullmatch(timing, answer.headers["server-timing"])
    ids = {
        client.get("/health", headers={"X-Request-Id": bad}).headers["x-request-id"] for bad in ("", "a b", "x" * 999)
    }
    assert len(ids) == 3  # new ones
    assert not ids & {"", "a b", "x" * 999}


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".bmp", ".webp"])
def test_other_formats(client: TestClient, suffix: str) -> None:
    mask = picture(client.post("/segment", content=png(IMAGE, suffix)).content)
    assert (mask == LABEL).mean() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (15, 15), (37, 91)])
def test_any_size(client: TestClient, size: tuple[int, int]) -> None:
    answer = client.post("/segment", content=png(IMAGE[: size[0], : size[1]]))
    assert picture(answer.content).shape == size


def test_colour_sixteen_bits_and_pages(client: TestClient) -> None:
    expected = picture(client.post("/segment", content=png(IMAGE)).content)
    colour = np.repeat(IMAGE[..., None], 3, axis=2)
    deep = IMAGE.astype(np.uint16) * 257
    for other in (colour, deep):
        mask = picture(client.post("/segment", content=png(other)).content)
        assert (mask == expected).mean() > 0.999
    answer = client.post("/segment", content=write_tiff([IMAGE, IMAGE[::-1], IMAGE[:50]]))
    assert answer.headers["content-type"] == "image/tiff"
    pages = imaging.read(answer.content).pages
    assert [page.shape for page in pages] == [(100, 100), (100, 100), (50, 100)]
    np.testing.assert_array_equal(pages[0], expected)


def test_the_mask_of_a_turned_photograph_is_upright(client: TestClient) -> None:
    file, exif = BytesIO(), Image.Exif()
    exif[0x112] = 6
    Image.fromarray(IMAGE[:, :60]).save(file, "PNG", exif=exif)
    mask = picture(client.post("/segment", content=file.getvalue()).content)
    assert mask.shape == (60, 100)
    assert (mask == np.rot90(LABEL[:, :60], -1)).mean() > 0.9


def test_several_classes(make_checkpoint: Make, serve: Serve) -> None:
    path = make_checkpoint(n_classes=3)
    probabilities = Predictor.load(path, device="cpu")(IMAGE)
    with serve(model=path) as client:
        mask = picture(client.post("/segment", content=png(IMAGE)).content)
        np.testing.assert_array_equal(mask, 10 + probabilities.argmax(0))
        sure = picture(client.post("/segment?output=probability", content=png(IMAGE)).content)
        np.testing.assert_array_equal(sure, np.rint(probabilities.max(0) * 255))
        assert "3 classes" in problem(client.post("/segment?threshold=0.5", content=png(IMAGE)), 422)


def test_another_number_of_channels(make_checkpoint: Make, serve: Serve) -> None:
    with serve(model=make_checkpoint(n_channels=2)) as client:
        assert client.post("/segment", content=tiff(np.dstack([IMAGE, IMAGE]))).status_code == 200
        for image, found in ((np.dstack([IMAGE] * 3), 3), (IMAGE, 1)):
            refused = client.post("/segment", files={"file": png(image)})
            assert problem(refused, 422) == f"the model was trained on 2 channels, this image has {found}"


def test_a_model_of_one_channel_takes_it(make_checkpoint: Make, serve: Serve, rng: np.random.Generator) -> None:
    path = make_checkpoint()
    expected = Predictor.load(path, device="cpu").predict(IMAGE, "probability")
    checkpoint = checkpoints.load(path)
    checkpoints.save(replace(checkpoint, preprocessing=replace(checkpoint.preprocessing, channel=2)), path)
    other = rng.integers(0, 256, IMAGE.shape, dtype=np.uint8)
    with serve(model=path) as client:
        for image in (np.dstack([other, IMAGE, other]), np.dstack([other, IMAGE]), IMAGE):
            answer = client.post("/segment?output=probability", content=tiff(image))
            np.testing.assert_array_equal(picture(answer.content), expected)
        assert client.get("/health").json()["model"]["channel"] == 2


def test_a_warning_of_values_that_do_not_fit(make_checkpoint: Make, trained: Path, serve: Serve) -> None:
    """12 bits in 16, and floats of 0..255; not for a model that standardises."""
    full, deep, bright = IMAGE.astype(np.uint16) * 257, IMAGE.astype(np.uint16) * 16, IMAGE.astype(np.float32)
    with serve(model=sure(make_checkpoint())) as client:

        def warning(pages: np.ndarray | list[np.ndarray]) -> str | None:
            answer = client.post("/segment", content=write_tiff(pages) if isinstance(pages, list) else tiff(pages))
            assert answer.status_code == 200
            return answer.headers.get("x-input-warning")  # type: ignore[no-any-return]

        for image, expected in ((deep, "uint16 values up to 65535"), (bright, "float32 values up to 1")):
            said = warning(image)
            assert said == Preprocessing().misfit(image)
            assert said is not None
            assert said.startswith(f"expected {expected}")
        assert (warning(IMAGE), warning(full), warning(IMAGE / np.float32(255))) == (None, None, None)
        said = warning([full, full[:50], deep, deep[:9]]) or ""
        assert said.startswith("page 3: expected uint16")
        assert said.endswith(" (of the 4 pages looked at, 2 differ)")
    with serve(model=trained / "best_model.pth") as client:
        assert warning(deep) is None


def sure(path: Path) -> Path:
    """The same binary model, sure that all is foreground."""
    checkpoint = checkpoints.load(path)
    weights = {**checkpoint.state_dict, "outc.conv.bias": torch.tensor([9.0])}
    checkpoints.save(replace(checkpoint, state_dict=weights), path)
    return path


def test_a_warning_of_images_unlike_the_training_images(client: TestClient) -> None:
    def warning(*pages: np.ndarray) -> str:
        return client.post("/segment", content=write_tiff(pages)).headers.get("x-input-warning", "")  # type: ignore[no-any-return]

    blurred = cv2.GaussianBlur(IMAGE, (0, 0), 4)
    assert warning(IMAGE) == ""
    assert warning(blurred).startswith("unlike the training images: blurrier (out of focus")
    said = warning(IMAGE, blurred, IMAGE, blurred)
    assert said.startswith("page 2: unlike the training images: blurrier")
    assert said.endswith(" (of the 4 pages looked at, 2 differ)")


@pytest.mark.parametrize("output", ["mask", "labels"])
def test_a_warning_that_the_model_is_never_sure(make_checkpoint: Make, serve: Serve, output: str) -> None:
    for n_classes in (1, 3):  # random weights
        with serve(model=make_checkpoint(n_classes=n_classes)) as client:
            answer = client.post(f"/segment?output={output}", content=write_tiff([IMAGE, IMAGE]))
            assert answer.headers["x-input-warning"] == DOUBT
    with serve(model=sure(make_checkpoint())) as client:
        assert "x-input-warning" not in client.post(f"/segment?output={output}", content=png(IMAGE)).headers


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected an image"),
        (b"hello", "expected an image"),
        (png(IMAGE)[:200], "truncated"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_400_for_a_body_that_is_not_an_image(client: TestClient, body: bytes, said: str) -> None:
    assert said in problem(client.post("/segment", content=body), 400)
    assert said in problem(client.post("/segment", files={"file": body}), 400)


def test_400_for_a_broken_form(client: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for part in (b'; name="a"\r\n\r\nhalf a', b'; filename="a"\r\n\r\nno name\r\n--x--\r\n'):
        body = b"--x\r\nContent-Disposition: form-data" + part
        assert "expected a form" in problem(client.post("/segment", content=body, headers=headers), 400)
    problem(client.post("/segment", content=b"", headers={"Content-Type": "multipart/form-data"}), 400)


@pytest.mark.parametrize("chunked", [False, True])
def test_413_for_too_many_bytes_announced_or_not(trained: Path, serve: Serve, chunked: bool) -> None:
    data = png(IMAGE)
    with serve(model=trained / "best_model.pth", max_bytes=len(data)) as client:

        def post(body: bytes) -> object:
            return client.post("/segment", content=iter([body[:99], body[99:]]) if chunked else body)

        assert post(data).status_code == 200  # type: ignore[attr-defined]
        assert f"at most {len(data)} bytes" in problem(post(data + b"x"), 413)


def test_413_for_too_many_pixels_or_pages(trained: Path, serve: Serve) -> None:
    with serve(model=trained / "best_model.pth", max_pixels=10_000, max_pages=1) as client:
        assert client.post("/segment", content=png(IMAGE)).status_code == 200
        assert "found 101 x 100" in problem(client.post("/segment", content=png(np.zeros((100, 101), np.uint8))), 413)
        assert "at most 1 pages" in problem(client.post("/segment", content=write_tiff([IMAGE[:9], IMAGE[:9]])), 413)


def test_415_for_another_media_type(client: TestClient) -> None:
    assert "found application/json" in problem(client.post("/segment", json={"image": "..."}), 415)
    problem(client.post("/segment", content=png(IMAGE), headers={"Content-Type": "text/plain"}), 415)
    assert client.post("/segment", content=png(IMAGE), headers={"Content-Type": ""}).status_code == 200
    packed = client.post("/segment", content=gzip.compress(png(IMAGE)), headers={"Content-Encoding": "gzip"})
    assert "found Content-Encoding gzip" in problem(packed, 415)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("output=masks", "output"),
        ("threshold=1.5", "threshold"),
        ("threshold=nan", "threshold"),
        ("threshold=half", "threshold"),
        ("treshold=0.5", "treshold: expected output, threshold, tta, class or page"),
        ("threshold=1.5", "threshold: input should be less than or equal to 1, found '1.5'"),
    ],
)
def test_422_for_a_bad_parameter(client: TestClient, query: str, said: str) -> None:
    assert said in problem(client.post(f"/segment?{query}", content=png(IMAGE)), 422)


def test_422_for_a_form_without_the_file(client: TestClient) -> None:
    assert "multipart field `file`" in problem(client.post("/segment", files={"image": png(IMAGE)}), 422)
    assert "image: expected output, threshold, tta, class or page" in problem(
        client.post("/segment", files={"image": b"", "file": png(IMAGE)}), 422
    )


def test_404_and_405_are_problems_too(client: TestClient) -> None:
    assert problem(client.get("/nothing"), 404).endswith("found /nothing")
    assert problem(client.get("/" + 9999 * "x"), 404).endswith("found /" + 98 * "x")
    assert problem(client.get("/segment"), 405) == "expected POST, found GET"
    problem(client.get("/segment"), 405)


def test_503_without_a_model(tmp_path: Path, serve: Serve) -> None:
    with serve(model=tmp_path / "best_model.pth") as client:
        answer = client.post("/segment", content=png(IMAGE))
    assert "no model yet" in problem(answer, 503)
    assert int(answer.headers["retry-after"]) > 0


def test_503_when_too_many_are_in_flight(trained: Path, serve: Serve) -> None:
    with serve(model=trained / "best_model.pth", max_in_flight=1) as client:
        places = client.app.state.admission._places  # type: ignore[attr-defined]
        places.add(object())
        answer = client.post("/segment", content=png(IMAGE))
        assert "in flight" in problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        assert client.post("/segment?misspelt=1", content=b"").status_code == 503  # before anything is looked at
        problem(client.get("/segment"), 405)
        places.clear()
        assert client.post("/segment", content=png(IMAGE)).status_code == 200
        assert not places


def test_503_when_there_is_no_memory_for_an_image(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("/secret/path")

    monkeypatch.setattr(Predictor, "compute", fail)
    answer = client.post("/segment", content=png(IMAGE))
    assert problem(answer, 503) == "not enough memory to compute this image"
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("place", ["service.routes.segment.decode", "unet.Predictor.compute"])
def test_500_for_a_bug(trained: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    app = create_app(ServeSettings(model=trained / "best_model.pth", device="cpu"))
    with TestClient(app, raise_server_exceptions=False) as client:
        monkeypatch.setattr(place, lambda *_, **__: {}["a mistake"])
        answer = client.post("/segment", content=png(IMAGE), headers={"X-Request-Id": "mine-7"})
        assert problem(answer, 500) == "a bug in the service; its log has the traceback of request mine-7"
        assert "retry-after" not in answer.headers
        assert client.get("/health").status_code == 200
        assert "\nunet_bugs_total 1.0\n" in client.get("/metrics").text


def test_504_when_it_takes_too_long(trained: Path, serve: Serve) -> None:
    with serve(model=trained / "best_model.pth", timeout_s=0.001) as client:
        assert "0.001 s" in problem(client.post("/segment", content=png(IMAGE)), 504)


def test_every_status_is_declared(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/segment"]["post"]
    statuses = {"200", "400", "401", "406", "408", "413", "415", "422", "431", "500", "503", "504"}
    assert set(operation["responses"]) == statuses
    assert "multipart/form-data" in operation["requestBody"]["content"]
    for status, response in operation["responses"].items():
        assert status == "200" or set(response["content"]) == {"application/problem+json"}


@pytest.mark.parametrize(("query", "times"), [("tta=0", 1), ("tta=1", 3), ("tta=1&output=probability", 3)])
def test_the_mean_of_several_views_takes_room_for_each_class(
    make_checkpoint: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch, query: str, times: int
) -> None:
    asked: list[int] = []
    room = PixelBudget.room
    monkeypatch.setattr(PixelBudget, "room", lambda self, pixels: asked.append(pixels) or room(self, pixels))
    with serve(model=make_checkpoint(n_classes=3)) as client:
        answer = client.post(f"/segment?{query}", content=png(np.zeros((30, 40), np.uint8)))
    assert answer.status_code == 200
    assert asked == [1200 * times]


def test_only_the_image_is_held_while_its_prediction_waits(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its file, which is as large here, nor a mask that has not been computed yet."""
    image = np.zeros((1500, 1500), np.uint8)
    file = png(image, ".bmp")
    held: list[int] = []
    submit = Queue.submit

    def measure(self: Queue, prediction: Prediction, request_id: str) -> Job:
        time.sleep(0.1)  # the thread that has decoded lets go of the file
        held.append(tracemalloc.get_traced_memory()[0])
        return submit(self, prediction, request_id)

    monkeypatch.setattr(Queue, "submit", measure)
    tracemalloc.start()
    try:
        assert client.post("/segment", content=file).status_code == 200
    finally:
        tracemalloc.stop()
    assert image.nbytes <= held[0] < 1.5 * image.nbytes


def test_stages_add_up(client: TestClient) -> None:
    timing = client.post("/segment", content=png(IMAGE)).headers["server-timing"]
    stages = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", timing)}
    assert set(stages) == {"queue", "decode", "infer", "encode"}
    assert stages["infer"] > 0
    assert min(stages.values()) >= 0
