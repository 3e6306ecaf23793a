"""prepare_mmlu.py on the real dev and test questions; the validation and auxiliary questions are made up here."""

import csv
import io
import random
import tarfile
import tempfile
from pathlib import Path

import pytest
from support.files import contents, read_lines
from support.mmlu import prepare
from support.programs import only_error

from teacherlm.atlas.prepare_mmlu import SPLITS

AUXILIARY = {"law_made_up": 4000, "race_made_up": 3000}


def made_up(folder: Path, name: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number in range(count):
            question = f'made up for a test, "number" {number},\nof {name}'
            writer.writerow([question, *(f"{letter} {number}" for letter in "abcd"), "ABCD"[number % 4]])


@pytest.fixture(scope="module")
def archive_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/ of the archive."""
    folder = tmp_path_factory.mktemp("archive") / "data"
    for split in ("dev", "test"):
        (folder / split).mkdir(parents=True)
        for file in (shared_data / "mmlu" / split).glob("*.csv"):
            (folder / split / file.name).write_bytes(file.read_bytes())
            if split == "test":
                made_up(folder / "val", file.name.replace("_test", "_val"), 3)
    for name, count in AUXILIARY.items():
        made_up(folder / "auxiliary_train", f"{name}.csv", count)
    return folder


@pytest.fixture(scope="module")
def made(archive_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made")
    with tarfile.open(output / "data.tar", "w") as tar:
        tar.add(archive_folder, "data")
    done = prepare(output, "--data_tar", output / "data.tar")
    assert done.returncode == 0, done.stderr
    assert "57 domains, 7000 auxiliary_train, 285 dev, 171 val, 14042 test" in done.stdout
    return output / "data" / "mmlu_data"


def test_the_three_trees(made: Path) -> None:
    common = {"combined_test.jsonl", "combined_valid.jsonl", "individual_test", "individual_valid"}
    expected = {
        "5-shot": common | {"individual_train"},
        "5-shot-multitask": common | {"train.jsonl"},
        "full": common | {"train.jsonl", "auxillary_valid.jsonl"},
    }
    for tree, names in expected.items():
        assert {path.name for path in (made / tree).iterdir()} == names
        for folder in names:
            if folder.startswith("individual"):
                assert len(list((made / tree / folder).iterdir())) == 57
    assert len(read_lines(made / "5-shot" / "individual_train" / "virology.5-shot-train.jsonl")) == 5
    assert len(read_lines(made / "5-shot-multitask" / "train.jsonl")) == 285
    assert len(read_lines(made / "full" / "train.jsonl")) == 2000 + 285
    assert len(read_lines(made / "full" / "auxillary_valid.jsonl")) == 5000


def test_every_test_question_is_in_its_domain_s_file(made: Path, archive_folder: Path) -> None:
    """The files are compared with the archive as Python's csv module reads it."""
    count = 0
    for file in sorted((archive_folder / "test").iterdir()):
        with open(file, encoding="utf-8") as handle:  # with universal newlines, as the reference opens it
            rows = list(csv.reader(handle))
        domain = file.name.removesuffix("_test.csv")
        for tree in ("5-shot", "5-shot-multitask", "full"):
            lines = read_lines(made / tree / "individual_test" / f"{domain}.test.jsonl")
            found = [[q["question"], *q["options"].values(), q["answer"]] for q in lines]
            assert found == rows
            assert {q["dataset"] for q in lines} == {f"{domain}_test"}
            assert all(list(q["options"]) == list("ABCD") for q in lines)
        count += len(rows)
    assert count == 14_042 == len(read_lines(made / "full" / "combined_test.jsonl"))


def test_no_carriage_return_is_left_in_a_question(made: Path, archive_folder: Path) -> None:
    """college_mathematics has one with \\r\\n; the reference reads \\n."""
    raw = [file.read_bytes() for file in sorted((archive_folder / "dev").iterdir())]
    assert any(b"\r" in line.rstrip(b"\r\n") or b"\r\n" in line for line in raw)
    for file in (made / "full" / "train.jsonl", made / "full" / "combined_test.jsonl"):
        assert all("\r" not in text for q in read_lines(file) for text in (q["question"], *q["options"].values()))
    with open(archive_folder / "dev" / "college_mathematics_dev.csv", encoding="utf-8") as handle:
        expected = [row[0] for row in csv.reader(handle)]
    lines = read_lines(made / "5-shot" / "individual_train" / "college_mathematics.5-shot-train.jsonl")
    assert [q["question"] for q in lines] == expected


def test_the_auxiliary_questions_are_shuffled_with_seed_10(made: Path, archive_folder: Path) -> None:
    questions = []
    for name in sorted(AUXILIARY):
        with open(archive_folder / "auxiliary_train" / f"{name}.csv", newline="", encoding="utf-8") as handle:
            questions += [(row[0], name) for row in csv.reader(handle)]
    random.seed(10)
    random.shuffle(questions)
    found = [(q["question"], q["dataset"]) for q in read_lines(made / "full" / "auxillary_valid.jsonl")]
    assert found == questions[-5000:]
    train = [(q["question"], q["dataset"]) for q in read_lines(made / "full" / "train.jsonl")]
    assert train[:2000] == questions[:-5000]
    assert [q["dataset"] for q in read_lines(made / "full" / "train.jsonl")[2000:2006]] == (
        ["abstract_algebra_dev"] * 5 + ["anatomy_dev"]
    )


def test_a_folder_gives_what_the_archive_gives_and_twice_does_nothing(archive_folder: Path, tmp_path: Path) -> None:
    """The domains whose names begin with p, and the auxiliary questions."""
    folder = tmp_path / "data"
    for file in [*archive_folder.glob("*/p*.csv"), *archive_folder.glob("auxiliary_train/*.csv")]:
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(folder, "data")
    made = {}
    for name, words in (("folder", ("--data_directory", folder)), ("archive", ("--data_tar", tmp_path / "data.tar"))):
        assert prepare(tmp_path / name, *words).returncode == 0
        before = contents(tmp_path / name)
        made[name] = {path: data for path, (data, _) in before.items() if "manifest" not in path}
        assert "done already" in prepare(tmp_path / name, *words).stdout
        assert contents(tmp_path / name) == before
    assert made["folder"] == made["archive"]
    assert any("philosophy" in path for path in made["folder"])


def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("data/../../escaped.csv")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    assert "evil.tar: refused" in only_error(prepare(tmp_path / "out", "--data_tar", tmp_path / "evil.tar"))
    assert not list(tmp_path.rglob("escaped*"))


@pytest.fixture
def inside_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives are unpacked."""
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
    return tmp_path / "unpacked"


def pack(path: Path, *given: tuple[str, bytes | None, dict[str, object]], mode: str = "w") -> Path:
    """An archive of the given members: name, contents, and further fields of the header."""
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for name, content, more in given:
            member = tarfile.TarInfo(name)
            for field, value in {"size": len(content or b""), **more}.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content) if content is not None else None)
    return path


ROW = b"Is it so?,yes,no,2,3,A\n"
SMALL = [(f"data/{split}/a{end}.csv", ROW, {}) for split, end in zip(SPLITS, ("", "_dev", "_val", "_test"))]


def test_the_hole_of_the_filter_of_python_3_11_7(inside_of: Path, tmp_path: Path) -> None:
    """CVE-2025-4517: a path of over 4,096 characters is not resolved, so one that leads out of the folder passes."""
    victim = tmp_path / "victim"
    victim.write_text("what the victim wrote")
    folder, way, members = "d" * 247, "", []
    for step in "abcdefghijklmnop":
        members.append((f"{way}{folder}", None, {"type": tarfile.DIRTYPE, "mode": 0o755}))
        members.append((f"{way}{step}", None, {"type": tarfile.SYMTYPE, "linkname": folder}))
        way += f"{folder}/"
    long = "/".join("abcdefghijklmnop") + "/" + "l" * 254
    members.append((long, None, {"type": tarfile.SYMTYPE, "linkname": "../" * 16}))
    members.append(("escape", None, {"type": tarfile.SYMTYPE, "linkname": f"{long}/../.."}))  # to tmp_path
    members.append(("same", None, {"type": tarfile.LNKTYPE, "linkname": "escape/victim"}))
    members.append(("same", b"overwritten", {}))
    prepare(tmp_path / "out", "--data_tar", pack(tmp_path / "evil.tar", *members))
    assert victim.read_text() == "what the victim wrote"


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            ("data/test/b_test.csv", None, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
            "is a link, or not an ord",
        ),
        (("data/test/b_test.csv", None, {"type": tarfile.LNKTYPE, "linkname": "data/test/a_test.csv"}), "is a link"),
        (("data/test/b_test.csv", None, {"type": tarfile.FIFOTYPE}), "is a link, or not an ordinary file"),
        (("data/test/b_test.csv", None, {"type": tarfile.CHRTYPE}), "is a link, or not an ordinary file"),
        (("data/test/b_test.csv", b"", {"type": tarfile.GNUTYPE_SPARSE}), "not a complete tar archive"),
        (("data/test/a_test.csv", ROW, {}), "it contains test/a_test.csv twice"),
        (("other/test/a_test.csv", ROW, {}), "it contains test/a_test.csv twice"),
        (("/data/test/b_test.csv", ROW, {}), "leads out of its folder"),
        (("data/test/../../../b_test.csv", ROW, {}), "leads out of its folder"),
        (("data/test/b\n_test.csv", ROW, {}), "has an unsafe name"),
        (("data/big", None, {"size": 10 * 2**30}), "unpacks to more than 536,870,912 bytes"),
        (("data/test/b_test.csv", None, {"size": 10 * 2**30}), "unpacks to more than 536,870,912 bytes"),
        (("data/test/b_test.csv", None, {"size": -512}), "not a complete tar archive"),
    ],
)
def test_only_ordinary_files_of_an_archive_are_read(
    inside_of: Path, tmp_path: Path, member: tuple, message: str
) -> None:
    archive = pack(tmp_path / "evil.tar", *SMALL, member)
    assert message in only_error(prepare(tmp_path / "out", "--data_tar", archive))
    assert not list(inside_of.iterdir())
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused(inside_of: Path, tmp_path: Path) -> None:
    """gzip compresses 600 megabytes of zeros to 600 kilobytes."""
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", compresslevel=1) as tar:
        for number in range(10):
            member = tarfile.TarInfo(f"data/test/{number}_test.csv")
            member.size = 60 * 2**20
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    message = only_error(prepare(tmp_path / "out", "--data_tar", tmp_path / "bomb.tar.gz"))
    assert "unpacks to more than 536,870,912 bytes" in message


def test_an_archive_of_very_many_members_is_refused(inside_of: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "many.tar", *((f"data/{number}", b"", {}) for number in range(20_001)))
    assert "more than 10,000 members" in only_error(prepare(tmp_path / "out", "--data_tar", archive))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_what_else_is_in_an_archive_is_passed_over(inside_of: Path, tmp_path: Path, mode: str) -> None:
    """The archive also has a folder, a link, a text, and files of macOS. Long names are in separate headers."""
    others = [("data", None, {"type": tarfile.DIRTYPE}), ("data/README.txt", b"hello" * 300, {})]
    others += [("data/latest", None, {"type": tarfile.SYMTYPE, "linkname": "test"}), ("data/test/._a.csv", b"\0", {})]
    others += [(f"data/test/{'long' * 40}_test.csv", ROW, {})]
    done = prepare(tmp_path / "out", "--data_tar", pack(tmp_path / "data.tar", *others, *SMALL, mode=mode))
    assert done.returncode == 0, done.stderr
    assert "2 domains, 1 auxiliary_train, 1 dev, 1 val, 2 test" in done.stdout


def test_an_archive_without_a_split_is_named(tmp_path: Path) -> None:
    archive = pack(tmp_path / "data.tar", *SMALL[:-1])
    assert "it contains no file test/*.csv" in only_error(prepare(tmp_path / "out", "--data_tar", archive))
    assert "not an ordinary file" in only_error(prepare(tmp_path / "out", "--data_tar", tmp_path))
    cut = pack(tmp_path / "cut.tar", *SMALL).read_bytes().rstrip(b"\0")
    (tmp_path / "cut.tar").write_bytes(cut + bytes(-len(cut) % 512))  # it ends behind a member
    assert "not a complete tar archive" in only_error(prepare(tmp_path / "out", "--data_tar", tmp_path / "cut.tar"))


def test_what_is_wrong_with_an_archive_is_said(archive_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(b"no tar at all" * 100)
    assert "not a complete tar archive" in only_error(prepare(tmp_path / "out", "--data_tar", tmp_path / "cut.tar"))
    assert "no such file" in only_error(prepare(tmp_path / "out", "--data_tar", tmp_path / "nowhere.tar"))
    five = tmp_path / "data"
    for file in archive_folder.rglob("*.csv"):
        target = five / file.relative_to(archive_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    broken = five / "val" / "virology_val.csv"
    broken.unlink()
    broken.write_text("a question,one,two,three,four,A\nanother,one,two,three,A\n")
    message = only_error(prepare(tmp_path / "out", "--data_directory", five))
    assert "virology_val.csv, line 2: a row of 6 columns was expected, found 5" in message
    assert not (tmp_path / "out" / "data" / "mmlu_data" / "5-shot").exists()
    rows = [b"question %d,one,two,three,four,A\n" % number for number in range(300)]
    rows[250] = b"caf\xe9,one,two,three,four,A\n"  # Latin-1, behind a decoder's first block
    broken.write_bytes(b"".join(rows))
    message = only_error(prepare(tmp_path / "out", "--data_directory", five))
    assert "virology_val.csv, line 251: not valid CSV in UTF-8" in message
