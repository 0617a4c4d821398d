"""docs/paper.md leads from downloads to numbers: its commands parse, what they read is there, its numbers agree with others."""

import json
import re

import pytest
import yaml
from documents import ROOT, blocks, command_lines, parsed, words_of

from modeling_visualbert.published import published_checkpoints, published_detectors, published_tokenizer

PAGE = (ROOT / "docs" / "paper.md").read_text()
LINES = list(command_lines(PAGE))
OURS = [line for line in LINES if line.startswith(("visualbert ", "accelerate launch "))]
OTHERS = {"mkdir", "pip", "tar", "unzip", "wget"}
# What the commands read and write, by flag.
READ = (
    "init_from",
    "model",
    "rationale_model",
    "features_dir",
    "features",
    "region_encoder",
    "tokenizer",
    "data_dir",
    "data",
)
READ += ("exclude_images", "images", "images_dir", "first", "second")
ON_THE_HUB = {*published_checkpoints(), *published_detectors(), published_tokenizer(), "scratch"}


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named from there


def test_there_are_commands_of_every_kind():
    programs = [words_of(line)[:2] for line in OURS]
    assert {"convert", "convert-features", "extract", "evaluate", "ground", "analyze"} <= {
        words[1] for words in programs if words[0] == "visualbert"
    }
    assert len([words for words in programs if words[0].startswith("examples/run_")]) >= 20
    assert {words_of(line)[0] for line in LINES if line not in OURS} == OTHERS


@pytest.mark.parametrize("line", OURS)
def test_commands_parse(line):
    args = parsed(line)
    if line.startswith("accelerate"):
        assert args.output_dir.startswith("runs/") and "--recipe examples/recipes/" in line
    else:
        assert callable(args.run)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("--features_dir", "--feature_dir"),
        ("--features_dir", "--features"),  # an abbreviation, which argparse would accept
        ("--mixed_precision bf16", "--mixed_precision bf61"),
        ("recipes/pretrain_coco_vqa.yaml", "recipes/pretrain_coco_vqa2.yaml"),
        ("--late_fusion", "--late-fusion"),
        ("--spatial", "--spacial"),
        ("--kind tsv", "--kind csv"),
        ("visualbert evaluate", "visualbert eval"),
        ("examples/run_vqa.py", "examples/run_vqa2.py"),
    ],
)
def test_a_slip_is_noticed(right, wrong):
    line = next(line for line in OURS if f"{right} " in f"{line} ")
    with pytest.raises((SystemExit, ValueError, FileNotFoundError, KeyError)):
        parsed(line.replace(right, wrong))


def paths_under_data():
    """Where the page says that downloads are put."""
    rows = re.findall(r"^\|.*\|(.*)\|$", PAGE.split("### Data")[1].split("\n## ")[0], flags=re.MULTILINE)
    return {path for row in rows for path in re.findall(r"`([^`]+)`", row)}


def made_by(line, args):
    """The paths that a command writes."""
    if line.startswith("accelerate"):
        return {args.output_dir, f"{args.output_dir}/best"}
    if args.command == "evaluate":
        return {args.output_dir, f"{args.output_dir}/predictions_{args.split}.jsonl"}
    return {value for name in ("target", "out") if (value := getattr(args, name, None))}


def test_what_is_read_is_made_before_or_downloaded():
    there = paths_under_data() | {"data/minival_ids.txt"}
    assert len(there) > 12

    def is_there(path):
        return path in there | ON_THE_HUB or any(other.startswith(f"{path}/") for other in there)

    for line in OURS:
        args = parsed(line)
        read = [getattr(args, name, None) for name in READ]
        read += [args.source] if getattr(args, "command", None) in ("convert", "convert-features") else []
        missing = [path for path in read if path is not None and not is_there(path) and not path.endswith("_images")]
        assert not missing, line
        assert not made_by(line, args) & there, f"made twice: {line}"
        there |= made_by(line, args)


def test_the_stages_of_a_model_agree():
    """Ablations hold in all stages of a model, and the stages read features of one kind."""
    flags = {args.output_dir: args for line in OURS if line.startswith("accelerate") for args in [parsed(line)]}
    followed = 0
    for args in flags.values():
        earlier = flags.get(str(args.init_from).removesuffix("/best"))
        if earlier is not None:
            followed += 1
            assert args.late_fusion == earlier.late_fusion, args.output_dir
            assert args.num_regions == earlier.num_regions, args.output_dir
    assert followed >= 12
    counts = {name: args.num_regions for name, args in flags.items()}
    assert {counts[name] for name in counts if name.startswith("runs/ablation")} == {36}
    assert {counts[name] for name in counts if name.startswith("runs/nlvr2")} == {144}


def test_minival_is_cut_out_of_the_official_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/coco/annotations", "data/vqa2"):
        (tmp_path / folder).mkdir(parents=True)
    content = {
        "data/coco/annotations/captions_val2017.json": {"images": [{"id": 2}], "annotations": []},
        "data/coco/annotations/captions_val2014.json": {
            "info": {"year": 2014},
            "images": [{"id": 1}, {"id": 2}],
            "annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}],
        },
        "data/vqa2/v2_OpenEnded_mscoco_val2014_questions.json": {"questions": [{"image_id": 1}, {"image_id": 2}]},
        "data/vqa2/v2_mscoco_val2014_annotations.json": {"annotations": [{"image_id": 1}, {"image_id": 2}]},
    }
    for path, value in content.items():
        (tmp_path / path).write_text(json.dumps(value))
    (code,) = (block for language, block in blocks(PAGE) if language == "python")
    exec(compile(code, "paper.md", "exec"), {})
    assert (tmp_path / "data/minival_ids.txt").read_text() == "2\n"
    captions = json.loads((tmp_path / "data/coco/annotations/captions_minival.json").read_text())
    assert captions == {
        "info": {"year": 2014},
        "images": [{"id": 2}],
        "annotations": [{"image_id": 2, "caption": "b"}],
    }
    for name in ("v2_OpenEnded_mscoco_minival_questions.json", "v2_mscoco_minival_annotations.json"):
        (records,) = json.loads((tmp_path / "data/vqa2" / name).read_text()).values()
        assert records == [{"image_id": 2}]


def test_links_and_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target
    for target in re.findall(r"`((?:tests|benchmarks|examples)/[\w/]+\.(?:py|md|yaml))`", PAGE):
        assert (ROOT / target).is_file(), target
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^##+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
    assert "(docs/paper.md)" in (ROOT / "README.md").read_text()


def test_numbers_of_the_ablations_are_those_of_the_other_table():
    other = (ROOT / "benchmarks" / "ablations.md").read_text().splitlines()[2:]
    paper = [row.split("|")[3].strip() for row in other]
    section = PAGE.split("## Ablations")[1]
    rows = re.findall(r"^\| (?:VisualBERT|C\d: [^|]*|9, 18[^|]*) \| ([\d., ]+) \|", section, flags=re.MULTILINE)
    assert [number for row in rows for number in row.split(", ")] == paper


def test_numbers_of_the_recipes_are_those_of_the_page():
    for name in ("vqa_finetune", "vqa_clip_vil", "nlvr2_finetune", "vcr_finetune_answer", "flickr30k_finetune"):
        comments = [
            line for line in (ROOT / f"examples/recipes/{name}.yaml").read_text().splitlines() if line[0] == "#"
        ]
        told = re.findall(r"\b\d\d\.\d+\b", re.sub(r"arXiv \S+", "", " ".join(comments)))
        assert told and all(number in PAGE for number in told), name


def test_no_recipe_of_the_paper_is_left_out():
    named = set(re.findall(r"examples/recipes/(\w+)\.yaml", PAGE))
    recipes = {path.stem for path in (ROOT / "examples" / "recipes").iterdir() if "corpus" not in path.stem}
    # "Not possible here", and a benchmark of our own.
    assert recipes - named == {"pretrain_coco_vcr", "pretrain_vcr", "vqa_photos"}
    assert all(yaml.safe_load((ROOT / f"examples/recipes/{name}.yaml").read_text()) for name in named)
