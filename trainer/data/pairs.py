"""Finding images and their labels in a data folder, by the layouts that people have.

Names decide: `Training_Images/NAME.png` with `Training_Labels/NAME.png`; two other folders (images/ with masks/); one
folder with `NAME.png` and `NAME_mask.png`, or `NAME.json`. Layouts of annotation tools are in `trainer.data.layouts`.
"""

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable
from itertools import takewhile
from pathlib import Path

from trainer.data import annotations
from trainer.data.annotations import Annotations, Coco
from trainer.data.files import JSON, Tree, images_of
from trainer.data.labels import LabelFile
from trainer.data.layouts import MANY, Found, Pair, beside, coco, nnunet, voc
from unet.errors import UserError
from unet.imaging import SUFFIXES
from unet.listing import endings, is_image, listing, natural_order, plural, some, stem

IMAGES, LABELS = "Training_Images", "Training_Labels"
EXPECTED = (
    f"{IMAGES}/ with {LABELS}/; images/ with masks/ or labels/; NAME.png with NAME_mask.png, NAME.json (labelme) or "
    "NAME.geojson (QuPath); COCO's JSON; nnU-Net's imagesTr/ with labelsTr/; or SegmentationClass/ (CVAT, Pascal VOC)"
)
_ENDING = re.compile(r"[_. -](masks?|labels?|seg)$", re.I)
_LABEL_WORD = re.compile(r"label|mask|annot|truth|manual|seg|target|instance|json|(^|[^a-z])gt($|[^a-z])", re.I)
_SEPARATORS = "_-. "

Contents = dict[Path, Annotations | Coco]


def find_pairs(data: Path, label_suffix: str | None = None) -> Found:
    """Images with their labels in a folder, or in the JSON of a tool, in natural order of their names; everything that
    is wrong, and what is left out. `label_suffix`: what label files add to the names of images. Raises OSError."""
    root = data
    if not data.is_dir():  # images are beside the file, or beside its folder: annotations/instances.json
        root = data.parent.parent if _LABEL_WORD.search(data.parent.name) else data.parent
    tree = Tree.of(root)
    found = _in_folder(tree, label_suffix) if root == data else _in_file(tree, data)
    found.pairs.sort(key=lambda pair: (natural_order(pair.name), pair.name))
    if not (found.pairs or found.problems):
        found.problems.append(f"no images: expected {EXPECTED} ({', '.join(SUFFIXES)})")
    labels: dict[Path, str] = {}
    for pair in found.pairs:
        if (other := labels.setdefault(pair.images[0], pair.label.name)) != pair.label.name:
            found.problems.append(
                f"{tree.name(pair.images[0])}: has two labels, {other} and {pair.label.name}; expected one: name what "
                "the files add to the image's name with --label-suffix, or move one away"
            )
    used = found.used.union(*((*pair.images, *pair.label.files) for pair in found.pairs))
    rest = [path for files in tree.folders.values() for path in files if path not in used]
    if rest:
        left_out = f"left out {plural(len(rest), 'file')} ({endings(rest)})"
        found.left_out.append(f"{left_out}: {some(map(tree.name, rest))}")
    if tree.deeper:
        names = some(f"{tree.name(folder)}/" for folder in tree.deeper)
        found.left_out.append(f"left out {plural(len(tree.deeper), 'folder')} in folders: {names}")
    return found


def _in_folder(tree: Tree, suffix: str | None) -> Found:
    """Pairs of the first layout that fits, or what was found instead."""
    images, labels = (folders := [tree.root / IMAGES, tree.root / LABELS])
    if given := [folder for folder in folders if folder in tree.folders]:
        if len(given) == 2:
            return _two_folders(tree, images, labels, suffix, {})
        (missing,) = {*folders} - {*given}
        return Found(problems=[f"{missing.name}/: no such folder; expected {IMAGES}/ with {LABELS}/"])
    if tools := nnunet(tree) or voc(tree):
        return tools
    problems: list[str] = []
    contents: Contents = {}
    for folder, files in tree.folders.items():
        if folder == tree.root or _LABEL_WORD.search(folder.name):
            contents |= _read_json(tree, files, problems)
    found = coco(tree, contents) or _folder_of_labels(tree, suffix, contents) or _one_folder(tree, suffix, contents)
    found.problems = problems + found.problems
    return found


def _in_file(tree: Tree, file: Path) -> Found:
    """Pairs of a JSON: COCO's for many images, labelme's or QuPath's for one."""
    found = Found()
    contents = _read_json(tree, [file], found.problems)
    if listed := coco(tree, contents):
        return listed
    _beside(tree, contents, images_of(tree.folders.get(file.parent, [])), None, found)
    if not (contents or found.problems):
        found.problems.append(f"{file.name}: expected a folder, or a JSON of COCO, labelme or QuPath")
    return found


def _read_json(tree: Tree, files: Iterable[Path], problems: list[str]) -> Contents:
    """Annotations in those of the files that are JSON of a tool."""
    contents: Contents = {}
    for path in files:
        if path.suffix.lower() in JSON:
            try:
                if content := annotations.read(path):
                    contents[path] = content
            except (UserError, OSError) as error:
                problems.append(f"{tree.name(path)}: {error}")
    return contents


def _folder_of_labels(tree: Tree, suffix: str | None, contents: Contents) -> Found | None:
    """Pairs of two folders, one of which is named like labels. None where no folder is."""
    others, candidates = [], []
    for folder, files in tree.folders.items():
        if folder == tree.root or not _LABEL_WORD.search(folder.name):
            others += [folder] if images_of(files) else []
        elif any(path in contents or (is_image(path) and stem(path).endswith(suffix or "")) for path in files):
            candidates.append(folder)
    if not (others and candidates):
        return None
    if len(candidates) > 1:
        names = " or ".join(f"{folder.name}/ ({tree.folders[folder][0].name}, ...)" for folder in candidates)
        advice = "name what its files add to the images' names with --label-suffix, or move the others away"
        return Found(problems=[f"labels may be in {names}; expected one such folder: {advice}"])
    (labels,) = candidates
    tried = {folder: _two_folders(tree, folder, labels, suffix, contents) for folder in others}
    best, *rest = sorted(others, key=lambda folder: -len(tried[folder].pairs))
    if rest and len(tried[rest[0]].pairs) == len(tried[best].pairs):
        names = " or ".join(f"{tree.name(folder)}/" for folder in (best, rest[0]))
        return Found(problems=[f"images may be in {names}; expected one folder of images for {labels.name}/"])
    return tried[best]


def _two_folders(tree: Tree, images: Path, labels: Path, suffix: str | None, contents: Contents) -> Found:
    """Pairs of a folder of images and one of labels: image files, or JSON that may be among `contents`."""
    found = Found()
    found.problems += [
        f"{tree.name(folder)}/: found a folder; expected images, since folders in it are not searched"
        for folder in tree.deeper
        if folder.parent in (images, labels)
    ]
    pictures, files = images_of(tree.folders[images]), tree.folders[labels]
    contents = contents or _read_json(tree, files, found.problems)
    drawn = {path: contents[path] for path in files if path in contents}
    if not (pictures or images_of(files) or drawn or found.problems):
        example = f"{images.name}/NAME.png with {labels.name}/NAME.png"
        found.problems.append(f"no images: expected {example} ({', '.join(SUFFIXES)})")
    _beside(tree, drawn, pictures, suffix, found)
    if images_of(files) or not found.pairs:
        _match(tree, (images, labels), pictures, images_of(files), suffix, found)
    return found


def _one_folder(tree: Tree, suffix: str | None, contents: Contents) -> Found:
    """Pairs of one folder, or what is there instead."""
    found, pictures = Found(), images_of(tree.folders[tree.root])
    _beside(tree, contents, pictures, suffix, found)
    labels = [p for p in pictures if (stem(p).endswith(suffix) if suffix else _ENDING.search(stem(p)))]
    if not (labels or found.pairs) and len(pictures) == 2:  # train-volume.tif with train-labels.tif
        labels = [path for path in pictures if _LABEL_WORD.search(stem(path))]
    images = [path for path in pictures if path not in labels]
    if images and labels:
        _match(tree, (tree.root, tree.root), images, labels, suffix, found)
    elif not (found.pairs or found.problems):
        _explain(tree, pictures, suffix, found)
    return found


def _beside(tree: Tree, contents: Contents, pictures: list[Path], suffix: str | None, found: Found) -> None:
    """Add pairs of images and JSON, unless label files are asked for by their ending."""
    drawn = {path: content for path, content in contents.items() if isinstance(content, Annotations)}
    if drawn and suffix is None:
        beside(tree, drawn, _by_stem(tree, pictures, found), found)


def _match(
    tree: Tree, folders: tuple[Path, Path], images: list[Path], labels: list[Path], suffix: str | None, found: Found
) -> None:
    """Add pairs of images with label files of the same names but for what the latter add. Folders: of the images, of
    the labels."""
    by_name = _by_stem(tree, images, found)
    ending = _common_ending(list(by_name))
    if ending and not any(_head(label, by_name, suffix) in by_name for label in labels):  # a_img with a_mask
        by_name = {name.removesuffix(ending): path for name, path in by_name.items()}
    heads = {label: _head(label, by_name, suffix) for label in labels if not suffix or stem(label).endswith(suffix)}
    paired = {label: by_name[head] for label, head in heads.items() if head in by_name}
    if not paired:
        if len(images) == len(labels) == 1:
            paired = {labels[0]: images[0]}
            guess = f"{tree.name(labels[0])} is taken as the label of {tree.name(images[0])}"
            found.left_out.append(f"{guess}: there is no other")
        elif nearest := _nearest(by_name, [stem(label) for label in labels]):
            found.problems.append(nearest)
            return
    for label, image in paired.items():
        found.pairs.append(Pair(stem(image), image, LabelFile(label, tree.name(label))))
    images_done = {pair.image for pair in found.pairs}
    done = {name for name, path in by_name.items() if path in images_done}
    of_image, of_label = folders
    added = suffix or ("_mask" if of_image == of_label else "")
    alone = {
        tree.name(of_label / f"{name}{added}.*"): path
        for name, path in by_name.items()
        if name not in done and not _extends(stem(path), done)
    }
    found.problems += _without_partner(tree, alone, "label", of_label)
    alone = {tree.name(of_image / f"{head}.*"): label for label, head in heads.items() if label not in paired}
    found.problems += _without_partner(tree, alone, "image", of_image)


def _without_partner(tree: Tree, alone: dict[str, Path], what: str, folder: Path) -> list[str]:
    """A line for each file without its label or image, by the name that was expected; or one for many."""
    if len(alone) > MANY:
        advice = "; images without one may be in a folder of their own: --unlabelled DIR" if what == "label" else ""
        names = some(map(tree.name, alone.values()))
        return [f"{len(alone)} files have no {what}: {names}; expected {min(alone)}{advice}"]
    problems = []
    for expected, path in alone.items():
        other = next((p.name for p in tree.folders[folder] if p.stem == Path(expected).stem and not is_image(p)), None)
        kind = f"; {other} is not one of {', '.join(SUFFIXES)}" if other else ""
        problems.append(f"{tree.name(path)}: has no {what} {expected}{kind}")
    return problems


def _by_stem(tree: Tree, images: list[Path], found: Found) -> dict[str, Path]:
    """Images by name without ending; two of one name are a problem."""
    by_stem: dict[str, Path] = {}
    for path in images:
        if (other := by_stem.setdefault(stem(path), path)) != path:
            problem = f"{tree.name(path)}: has the same name as {other.name}; expected one file per name"
            found.problems += [problem] if problem not in found.problems else []
    return by_stem


def _head(label: Path, names: dict[str, Path], suffix: str | None) -> str:
    """Name of the image of a label file: its own without what it adds."""
    name = stem(label)
    if suffix:
        return name.removesuffix(suffix)
    inner = stem(Path(name)) if is_image(Path(name)) else name  # a.tif.png
    return next((each for each in (name, inner) if each in names), _ENDING.sub("", inner))


def _common_ending(names: list[str]) -> str:
    """What all of several names end with, from a separator on: _img of 1_img and 2_img."""
    backwards = sorted(name[::-1] for name in names)
    pairs = zip(backwards[0], backwards[-1], strict=False) if len(names) > 1 else ()
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))[::-1]
    return next((common[i:] for i, letter in enumerate(common) if letter in _SEPARATORS), "")


def _extends(name: str, heads: Container[str]) -> bool:
    """Whether a name is one of the heads with more behind a separator."""
    return any(letter in _SEPARATORS and name[:i] in heads for i, letter in enumerate(name) if i)


def _nearest(heads: Collection[str], names: list[str]) -> str | None:
    """The --label-suffix that would pair most names with shorter ones."""
    added: Counter[str] = Counter()
    for name in names:
        cut = next((i for i in range(len(name) - 1, 0, -1) if name[:i] in heads), None)
        if cut and not name[cut].isdigit():
            added[name[cut:]] += 1
    options = [
        f"{plural(n, 'file')} named like them + `{end}`: --label-suffix {end}" for end, n in added.most_common(3)
    ]
    return f"{plural(len(heads), 'image')}, {'; or '.join(options)}" if options else None


def _explain(tree: Tree, pictures: list[Path], suffix: str | None, found: Found) -> None:
    """Add a problem: what a folder holds in which nothing fits, and the nearest layout."""
    names = {stem(path) for path in pictures}
    heads = {name for name in names if not _extends(name, names)}
    nearest = _nearest(heads, sorted(names - heads))
    holdings = [f"{endings(files)} in {tree.name(folder)}/" for folder, files in tree.folders.items() if files]
    if tree.deeper:
        holdings.append(f"folders in folders, which are not searched: {some(map(tree.name, tree.deeper))}")
    if suffix:
        holdings.append(f"no image whose name ends with {suffix} (--label-suffix)")
    if not nearest and (
        below := [folder for folder in tree.folders if folder != tree.root and find_pairs(folder).pairs]
    ):
        nearest = f"{some(f'{folder.name}/' for folder in below)} would fit: --data {below[0]}"
    elif not nearest and pictures and any(_LABEL_WORD.search(folder.name) for folder in listing(tree.root.parent)[1]):
        nearest = f"the folder above has labels, too: --data {tree.root.parent}"
    found.problems.append(
        f"found {some(holdings, 8) or 'nothing'}; expected {EXPECTED}" + (f". Nearest: {nearest}" if nearest else "")
    )
