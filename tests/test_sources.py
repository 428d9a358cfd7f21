"""Sources: the same six clips give the same rows, whatever holds them."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_wav2vec_family.audio_reading import read_audio
from training import sources
from training.rows import Row
from training.sources import Source, as_sources, open_source

TEXTS = ["ONE", "TWO TWO", '"SAY" THREE', "", "FIVE, SIX", "SEVEN"]


def clip(number):
    return np.random.default_rng(number).uniform(-0.5, 0.5, 1600 + 160 * number).astype(np.float32)


def records(suffix):
    return [
        {
            "file_name": f"part/clip{n}.{suffix}",
            "text": text,
            "duration": len(clip(n)) / 16_000,
            "speaker": f"s{n % 2}",
        }
        for n, text in enumerate(TEXTS)
    ]


def write_audio(folder, suffix="wav"):
    (folder / "part").mkdir(parents=True)
    for number in range(len(TEXTS)):
        soundfile.write(folder / "part" / f"clip{number}.{suffix}", clip(number), 16_000)
    return folder


def write_table(path, rows, **options):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:  # with the mark that spreadsheets write
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def write_parquet(folder, rows, pieces=1):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for row in rows:
        row["audio"] = {"path": row.pop("file_name"), "bytes": None}
        row["audio"]["bytes"] = (folder / row["audio"]["path"]).read_bytes()
    size = len(rows) // pieces
    for piece in range(pieces):
        table = pa.Table.from_pylist(rows[piece * size : (piece + 1) * size])
        pq.write_table(table, folder / f"train-{piece:05d}-of-{pieces:05d}.parquet")
    for audio in folder.rglob("*.wav"):
        audio.unlink()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tar(path, folder, rows):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for row in rows:
            row = dict(row)
            name = row.pop("file_name")
            stem = name.rsplit(".", 1)[0]
            add(tar, name, (folder / name).read_bytes())
            add(tar, f"{stem}.txt", (row.pop("text") + "\n").encode())
            add(tar, f"{stem}.json", json.dumps(row).encode())
        add(tar, "part/._clip5.wav", b"what macOS leaves behind")


def build(kind, root):
    """Writes the corpus as `kind`; returns what `as_sources` takes."""
    if kind == "audiofolder with splits":
        write_jsonl(write_audio(root / "train", "flac") / "metadata.jsonl", records("flac"))
        write_jsonl(write_audio(root / "dev") / "metadata.jsonl", records("wav")[:1])
        return root
    if kind in ("one audiofolder", "audiofolder of ogg"):
        suffix = "ogg" if kind == "audiofolder of ogg" else "wav"
        write_table(write_audio(root / "corpus", suffix) / "metadata.csv", records(suffix))
        return root / "corpus"
    folder, rows = write_audio(root / "corpus"), records("wav")
    if kind == "jsonl manifest":
        renamed = [{"audio_filepath": r.pop("file_name"), "sentence": r.pop("text"), **r} for r in rows]
        write_jsonl(folder / "all.jsonl", renamed)
        return {"path": str(folder / "all.jsonl")}
    if kind == "tsv manifest":
        renamed = [{"path": r.pop("file_name"), "transcript": r.pop("text"), **r} for r in rows]
        write_table(folder / "all.tsv", renamed, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        return folder / "all.tsv"
    if kind == "two manifests":
        write_jsonl(folder / "a.jsonl", rows[:2])
        write_jsonl(folder / "b.jsonl", rows[2:])
        return [str(folder / "a.jsonl"), {"path": str(folder / "b.jsonl")}]
    if kind.startswith("parquet"):
        write_parquet(folder, rows, pieces=2)
        return folder if kind == "parquet folder" else folder / "*.parquet"
    if kind == "tar":
        write_tar(root / "all.tar", folder, rows)
        return root / "all.tar"
    assert kind == "folder of tars"
    (root / "shards").mkdir()
    write_tar(root / "shards" / "train-0.tar", folder, rows[:3])
    write_tar(root / "shards" / "train-1.tgz", folder, rows[3:])
    write_tar(root / "shards" / "test-0.tar", folder, rows[:1])
    return root / "shards"


KINDS = [
    "audiofolder with splits",
    "one audiofolder",
    "audiofolder of ogg",
    "jsonl manifest",
    "tsv manifest",
    "two manifests",
    "parquet folder",
    "parquet pattern",
    "tar",
    "folder of tars",
]


def rows_of(value, **options):
    return [row for source in as_sources(value, **options) for row in open_source(source).rows()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_rows_in_the_same_order(kind, tmp_path):
    rows = rows_of(build(kind, tmp_path))
    assert [row.id for row in rows] == [f"part/clip{n}" for n in range(6)]
    assert [row.text for row in rows] == TEXTS
    assert [row.extra["speaker"] for row in rows] == [f"s{n % 2}" for n in range(6)]
    for number, row in enumerate(rows):
        assert row.duration_seconds == pytest.approx(len(clip(number)) / 16_000)
        assert np.corrcoef(read_audio(row.audio), clip(number))[0, 1] > (0.9 if "ogg" in kind else 0.9999)


def test_a_list_of_symbols_in_the_column_asked_for_is_the_text(tmp_path):
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"file_name": "a.wav", "text": "AN", "phones": ["AE", "N"], "duration": 1.0}\n')
    assert [row.text for row in rows_of(metadata)] == ["AN"]
    assert [row.text for row in rows_of({"path": metadata, "text_column": "phones"})] == ["AE N"]
    assert [row.text for row in rows_of({"path": metadata, "text_column": "text"})] == ["AN"]
    with pytest.raises(ValueError, match=r"text_column is 'words'.*got None; the columns are text, phones"):
        rows_of({"path": metadata, "text_column": "words"})


@pytest.mark.parametrize("kind", ["audiofolder with splits", "two manifests", "parquet folder", "folder of tars"])
def test_rows_can_be_read_again_from_the_start(kind, tmp_path):
    opened = [open_source(source) for source in as_sources(build(kind, tmp_path))]
    assert [list(source.rows()) for source in opened] == [list(source.rows()) for source in opened]


def test_a_folder_of_audio_alone_gives_sorted_rows_without_text(tmp_path):
    folder = write_audio(tmp_path / "corpus", "flac")
    (folder / "part" / "._clip0.flac").write_bytes(b"what macOS leaves behind")
    assert rows_of(folder) == [Row(f"part/clip{n}", str(folder / "part" / f"clip{n}.flac")) for n in range(6)]


def test_an_id_of_the_metadata_wins_over_the_file_name_and_an_absolute_path_is_kept(tmp_path):
    audio = write_audio(tmp_path / "elsewhere") / "part" / "clip0.wav"
    write_jsonl(tmp_path / "all.jsonl", [{"id": "mine", "path": str(audio)}])
    assert rows_of(tmp_path / "all.jsonl") == [Row("mine", str(audio))]


def test_a_hub_data_set_is_streamed_undecoded(tmp_path, monkeypatch):
    import datasets

    folder, asked = write_audio(tmp_path), {}
    table = [
        {"audio": {"bytes": (folder / f"part/clip{n}.wav").read_bytes(), "path": f"clip{n}.wav"}, "sentence": text}
        for n, text in enumerate(TEXTS)
    ]

    def load_dataset(path, name, *, split, streaming):
        asked.update(path=path, name=name, split=split, streaming=streaming)
        features = datasets.Features({"audio": datasets.Audio(), "sentence": datasets.Value("string")})
        return datasets.IterableDataset.from_generator(lambda: iter(table), features=features.copy())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    # What stands on the Hub is told to decode; without torchcodec that would be an error.
    monkeypatch.setattr(datasets.Audio, "encode_example", lambda self, value: value)
    rows = rows_of({"path": "owner/corpus", "name": "clean", "split": "train.100"})
    assert asked == {"path": "owner/corpus", "name": "clean", "split": "train.100", "streaming": True}
    assert [(row.id, row.text, row.audio) for row in rows] == [
        (f"clip{n}", text, table[n]["audio"]["bytes"]) for n, text in enumerate(TEXTS)
    ]


def test_a_hub_data_set_without_its_audio_reads_no_file_of_this_machine(tmp_path, monkeypatch):
    import datasets

    audio = write_audio(tmp_path) / "part" / "clip0.wav"
    table = datasets.Dataset.from_list([{"audio": {"bytes": None, "path": str(audio)}}]).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    with pytest.raises(ValueError, match="a data set of the Hub must bring it"):
        rows_of("owner/corpus")


def test_an_unknown_hub_data_set_and_a_missing_path_are_refused_with_what_is_accepted(tmp_path, monkeypatch):
    import datasets

    def load_dataset(path, *_, **__):
        raise datasets.exceptions.DatasetNotFoundError(f"{path} doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.docx").touch()
    missing = [tmp_path / "no", "./no", "no/such/folder", "no.jsonl", tmp_path / "*.tar", "no/such"]
    for path in [*missing, tmp_path / "empty", tmp_path / "notes.docx"]:
        with pytest.raises(ValueError, match=r"accepted is a folder with metadata\.jsonl") as error:
            open_source(Source(str(path)))
        assert str(path) in str(error.value)


def test_a_split_that_is_not_there_is_refused_and_never_replaced(tmp_path):
    for kind in ("audiofolder with splits", "folder of tars", "parquet folder"):
        (tmp_path / kind).mkdir()
        (source,) = as_sources(build(kind, tmp_path / kind), split="validation")
        with pytest.raises(ValueError, match=r"'validation'.*(train|test)"):
            open_source(source)


def test_the_given_split_is_read_and_slices_are_refused(tmp_path):
    assert len(rows_of(build("audiofolder with splits", tmp_path), split="dev")) == 1
    with pytest.raises(ValueError, match="slices"):
        Source("corpus", split="train[:10]")


def test_sources_in_words_that_mean_nothing_are_refused():
    for value in [{"path": "a", "spilt": "dev"}, {"name": "a"}, [], None, 3]:
        with pytest.raises(ValueError, match="source"):
            as_sources(value)
    assert as_sources(["a", {"path": "b", "split": "test"}, {"path": Path("c"), "split": None}], split="dev") == [
        Source("a", split="dev"),
        Source("b", split="test"),
        Source("c", split="dev"),
    ]


def test_a_configuration_of_a_local_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source\.name: 'clean'"):
        open_source(Source(str(write_audio(tmp_path)), name="clean"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON object"),
        ('{"file": "a.wav"}', "file_name or path or audio_filepath"),
        ('{"path": "a.wav", "text": 1}', "expected a string"),
        ('{"path": "a.wav", "duration": "long"}', "number of seconds"),
        ('{"path": "a.wav", "duration": -1}', "number of seconds"),
    ],
)
def test_a_broken_line_of_a_manifest_is_named(line, message, tmp_path):
    (tmp_path / "all.jsonl").write_text('{"path": "a.wav"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"all\.jsonl, line 2: .*{message}"):
        rows_of(tmp_path / "all.jsonl")


@pytest.mark.parametrize("name", ["/etc/a.wav", "../a.wav", "b/../../a.wav"])
def test_a_manifest_that_points_out_of_its_folder_is_refused(name, tmp_path):
    write_jsonl(tmp_path / "all.jsonl", [{"file_name": "b/../a.wav"}, {"file_name": name}])
    rows = open_source(Source(str(tmp_path / "all.jsonl"))).rows()
    assert next(rows).audio == str(tmp_path / "b" / ".." / "a.wav")
    with pytest.raises(ValueError, match=r"all\.jsonl, line 2: .* points out of"):
        next(rows)


@pytest.mark.parametrize("name", ["/etc/a.wav", "../a.wav"])
def test_a_table_that_points_out_of_its_folder_is_refused(name, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{"audio": {"path": name, "bytes": None}}]), tmp_path / "all.parquet")
    with pytest.raises(ValueError, match=r"row 0: .* points out of"):
        rows_of(tmp_path / "all.parquet")


@pytest.mark.parametrize("name", ["/etc/a.wav", "../a.wav", "b/../../a.wav"])
def test_a_tar_member_that_points_out_of_the_tar_is_refused(name, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, name, b"")
    with pytest.raises(ValueError, match=r"a\.tar: member .* points out"):
        rows_of(tmp_path / "a.tar")


def test_a_tar_member_that_is_a_link_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.wav")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match="is a link"):
        rows_of(tmp_path / "a.tar")


def test_a_tar_whose_texts_do_not_follow_their_audio_is_refused_rather_than_read_without_texts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ["a.wav", "b.wav", "a.txt", "b.txt"]:
            add(tar, name, b"")
    with pytest.raises(ValueError, match="'a' must follow"):
        rows_of(tmp_path / "a.tar")


def test_a_tar_that_was_cut_short_is_refused(tmp_path):
    path = build("tar", tmp_path)
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(ValueError, match=r"all\.tar: not a whole tar"):
        rows_of(path)


def test_real_metadata_gives_rows_whose_files_exist():
    folder = Path(__file__).parents[2] / "shared" / "data" / "librispeech-clean-5"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    rows = rows_of(folder, split="dev")
    assert len(rows) == 146
    assert all(Path(row.audio).is_file() and row.text for row in rows)
    assert sum(row.duration_seconds for row in rows) / 3600 == pytest.approx(0.5, abs=0.01)
    assert sources.open_source(Source(str(folder))).kind == "manifest"


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "shard.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"shard\.parquet: not readable as parquet"):
        list(open_source(Source(str(tmp_path / "shard.parquet"))).rows())
    (tmp_path / "latin.csv").write_bytes("file_name,text\na.wav,schön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv, line 2: not UTF-8"):
        list(open_source(Source(str(tmp_path / "latin.csv"))).rows())
    (tmp_path / "empty.csv").write_text("file_name,text\n,hello\n")
    with pytest.raises(ValueError, match=r"empty\.csv, line 2: expected a column"):
        list(open_source(Source(str(tmp_path / "empty.csv"))).rows())
