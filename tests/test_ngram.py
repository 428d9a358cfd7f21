"""n-gram models: equal to loops written from the equations, to a published example, and to KenLM's reading of them."""

import gzip
import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from hf_wav2vec_family.decoding import sorted_rows
from hf_wav2vec_family.decoding.__main__ import main
from hf_wav2vec_family.decoding.arpa import ArpaModel, perplexity
from hf_wav2vec_family.decoding.ngram import NgramSettings, discounts_of, train_ngram
from hf_wav2vec_family.decoding.text_lines import read_lines, units_of

SHARED = Path(__file__).parents[2] / "shared"
FALLBACK = [0.0, 0.5, 1.0, 1.5]


class SlowModel:
    """Modified Kneser-Ney straight from Chen and Goodman, 1998, with every count looked for among all the others."""

    def __init__(self, lines, order, prune=(0,)):
        self.seen = Counter()
        for line in lines:
            sentence = ("<s>", *line, "</s>")
            for n in range(1, order + 1):
                self.seen.update(sentence[i : i + n] for i in range(len(sentence) - n + 1))
        longer = Counter(ngram[1:] for ngram in self.seen if len(ngram) > 1)
        self.counts = {
            ngram: seen if len(ngram) == order or ngram[0] == "<s>" else longer[ngram]
            for ngram, seen in self.seen.items()
            if ngram != ("<s>",)
        }
        self.kept = {g for g in self.counts if self.seen[g] > prune[min(len(g), len(prune)) - 1]}
        self.words = {g[0] for g in self.counts if len(g) == 1} | {"<unk>"}
        self.discounts = {n: self.discounts_of(n) for n in range(1, order + 1)}

    def discounts_of(self, n):
        t = [sum(len(g) == n and count == k for g, count in self.counts.items()) for k in range(5)]
        if not min(t[1:4]):
            return FALLBACK
        y = t[1] / (t[1] + 2 * t[2])
        discounts = [0.0, *(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))]
        return discounts if min(discounts) >= 0 else FALLBACK

    def probability(self, context, word):
        following = {g: count for g, count in self.counts.items() if g[:-1] == context}
        lower = self.probability(context[1:], word) if context else 1 / len(self.words)
        if not following:
            return lower
        ngram, total, discounts = (*context, word), sum(following.values()), self.discounts[len(context) + 1]
        taken = sum(discounts[min(count, 3)] if g in self.kept else count for g, count in following.items())
        count = following[ngram] if ngram in self.kept and ngram in following else 0
        return (count - discounts[min(count, 3)] + taken * lower) / total


def text(num_lines, num_words=7, seed=0):
    """Sentences, some of them empty, of words that come more and less often."""
    generator = random.Random(seed)
    words = [f"w{i}" for i in range(num_words)]
    return [
        [words[min(int(generator.expovariate(0.5)), num_words - 1)] for _ in range(generator.randint(0, 8))]
        for _ in range(num_lines)
    ]


@pytest.mark.parametrize(
    ("order", "prune"), [(1, [0]), (2, [0]), (3, [0]), (3, [0, 1]), (4, [0, 0, 1]), (5, [0, 1, 1, 2])]
)
def test_every_probability_equals_the_slow_loop_and_every_context_sums_to_one(tmp_path, order, prune):
    lines, generator = text(60), random.Random(1)
    train_ngram(lines, tmp_path / "lm.arpa", NgramSettings(order=order, prune=prune, discount_fallback=True))
    model, slow = ArpaModel.read(tmp_path / "lm.arpa"), SlowModel(lines, order, prune)
    assert set(model.probabilities) == slow.kept | {("<s>",), ("<unk>",)}
    for _ in range(15):
        context = tuple(generator.choice(sorted(slow.words)) for _ in range(generator.randint(0, order - 1)))
        context = ("<s>", *context[1:]) if context and generator.random() < 0.3 else context
        found = {word: 10 ** model.score(context, word) for word in slow.words}
        assert sum(found.values()) == pytest.approx(1, abs=1e-6)
        assert found == pytest.approx({w: slow.probability(context, w) for w in slow.words}, rel=1e-6)


def test_two_toy_corpora_get_the_numbers_that_kenlm_publishes_for_them(tmp_path):
    """Of its test of interpolation (`lm/interpolate/tune_instance_test.cc`), which lmplz estimated with
    `--discount_fallback -o 3`."""
    published = {
        ("a a b a", "b a a b"): {
            ("<unk>",): -0.90309,
            ("a",): -0.46943438,
            ("</s>",): -0.5720968,
            ("<s>", "a"): -0.37712017,
        },
        ("a a b b b b b b b", "c"): {
            ("<unk>",): -1.0,
            ("a",): -0.6146491,
            ("</s>",): -0.6146491,
            ("c",): -0.7659168,
            ("<s>", "c"): -0.4740302,
            ("<s>", "c", "</s>"): -0.09113217,
        },
    }
    for lines, expected in published.items():
        settings = NgramSettings(order=3, discount_fallback=True)
        train_ngram(map(str.split, lines), tmp_path / "toy.arpa", settings)
        model = ArpaModel.read(tmp_path / "toy.arpa")
        assert {ngram: model.probabilities[ngram] for ngram in expected} == pytest.approx(expected, abs=1e-6)
        assert model.backoffs["<s>",] == pytest.approx(-0.30103, abs=1e-6)


def test_runs_on_disk_give_the_file_that_memory_gives(tmp_path, monkeypatch):
    lines = [[f"w{i * j % 101}" for j in range(1, 7)] for i in range(200)]  # more words than a block has rows
    settings = NgramSettings(order=4, prune=[0, 0, 1], discount_fallback=True)
    train_ngram(lines, tmp_path / "memory.arpa", settings)
    runs = []
    append = sorted_rows.Spool.append
    monkeypatch.setattr(sorted_rows.Spool, "append", lambda run, rows: (runs.append(run.path), append(run, rows)))
    monkeypatch.setattr(sorted_rows, "MIN_BLOCK_ROWS", 16)
    monkeypatch.setattr(sorted_rows, "COPIES_IN_MEMORY", 2000)
    monkeypatch.setattr("hf_wav2vec_family.decoding.ngram.WORDS_PER_BLOCK", 50)
    train_ngram(lines, tmp_path / "disk.arpa", NgramSettings(**vars(settings) | {"memory_mib": 1}))
    assert sum(path.parent.name == "windows" for path in runs) > 5
    assert any(path.parent.name == "discounted1" for path in runs)
    assert (tmp_path / "disk.arpa").read_text() == (tmp_path / "memory.arpa").read_text()
    assert not list(tmp_path.glob("ngram-*"))


def log10_probability_by_kenlm(path, words, lines):
    """Of all lines, as KenLM's reader, the one inside of flashlight-text, has it; words not in `words` are unknown."""
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    units = [*words, "<unk>"]
    ids = {unit: number for number, unit in enumerate(units)}
    lm, total = KenLM(str(path), Dictionary(units)), 0.0
    for line in lines:
        state = lm.start(False)
        for word in line:
            state, score = lm.score(state, ids.get(word, ids["<unk>"]))
            total += score
        total += lm.finish(state)[1]
    return total


@pytest.mark.parametrize("order", [2, 3, 5])
def test_perplexity_is_that_of_kenlms_reader(tmp_path, order):
    train_ngram(text(100), tmp_path / "lm.arpa", NgramSettings(order=order, discount_fallback=True))
    model, others = ArpaModel.read(tmp_path / "lm.arpa"), [*text(20, num_words=8, seed=1), []]
    ours = perplexity(model, others)
    assert 0 < ours.num_unknown < ours.num_units
    theirs = log10_probability_by_kenlm(tmp_path / "lm.arpa", model.words, others)
    assert ours.log10_probability == pytest.approx(theirs, rel=1e-6)
    assert ours.perplexity == pytest.approx(10 ** (-theirs / ours.num_units), rel=1e-4)


@pytest.mark.parametrize("order", [3, 4])
def test_perplexity_of_real_transcripts_is_that_of_kenlms_reader(tmp_path, capsys, order):
    corpus = SHARED / "data" / "librispeech-clean-5"
    if not corpus.is_dir():
        pytest.skip(f"no {corpus}")
    train, dev = (str(corpus / split / "metadata.jsonl") for split in ("train", "dev"))
    arpa = str(tmp_path / "lm.arpa")
    # without a fallback: the discounts are those of the counts
    assert main(["ngram", train, "--output", arpa, "--order", str(order)]) == 0
    capsys.readouterr()
    assert main(["perplexity", arpa, dev]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert ours["num_units"] > 4000
    theirs = log10_probability_by_kenlm(arpa, ArpaModel.read(arpa).words, units_of(read_lines([dev]), None))
    assert ours["perplexity"] == pytest.approx(10 ** (-theirs / ours["num_units"]), rel=0, abs=1e-4)


def test_words_not_known_are_left_out_of_their_perplexity_alone(tmp_path):
    train_ngram(text(100), tmp_path / "lm.arpa", NgramSettings(order=2, discount_fallback=True))
    model = ArpaModel.read(tmp_path / "lm.arpa")
    result = perplexity(model, [["w1", "new"]])
    known = model.score(["<s>"], "w1") + model.score(["<unk>"], "</s>")
    assert result.perplexity_of_known_words == pytest.approx(10 ** (-known / 2))
    assert result.log10_probability == pytest.approx(known + model.score(["w1"], "new"))


def test_counts_without_discounts_are_refused_unless_a_fallback_is_asked_for(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"order 1 give no discounts: 2, 0, 0 and 0"):
        train_ngram([["a"]], tmp_path / "lm.arpa", NgramSettings(order=1))
    assert not list(tmp_path.iterdir())
    train_ngram([["a"]], tmp_path / "lm.arpa", NgramSettings(order=1, discount_fallback=True))
    assert "Order 1 has the discounts 0.5, 1 and 1.5" in caplog.text
    assert discounts_of((4, 2, 1, 1), 3).tolist() == pytest.approx([0, 0.5, 1.25, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": 6}, "order must be from 1 to 5, got 6"),
        ({"prune": [1]}, r"prune must be 0 .* got \[1\]"),
        ({"order": 3, "prune": [0, 2, 1]}, r"none below the one before; got \[0, 2, 1\]"),
        ({"order": 2, "prune": [0, 0, 1]}, "up to 1 numbers more"),
        ({"memory_mib": 0}, "memory_mib must be at least 1, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NgramSettings(**fields)


@pytest.mark.parametrize(("lines", "message"), [([[]], "no word at all"), ([["a"], ["<s>"]], "line 2 holds <s>")])
def test_text_without_words_or_with_those_of_the_format_is_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        train_ngram(lines, tmp_path / "lm.arpa", NgramSettings(discount_fallback=True))


@pytest.mark.parametrize(("content", "message"), [("", "sections"), ("\\2-grams:\n-1\ta\n", "line 2: .* order 2")])
def test_what_is_no_arpa_is_refused(tmp_path, content, message):
    (tmp_path / "lm.arpa").write_text(content)
    with pytest.raises(ValueError, match=message):
        ArpaModel.read(tmp_path / "lm.arpa")


def test_the_commands_train_on_text_and_manifests_and_measure(tmp_path, capsys):
    lines = [" ".join(line) for line in text(80) if line]
    with gzip.open(tmp_path / "half.txt.gz", "wt") as file:
        file.write("\n\n".join(lines[::2]))
    (tmp_path / "half.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[1::2]))
    (tmp_path / "all.txt").write_text("\n".join(lines))
    halves = [str(tmp_path / "half.txt.gz"), str(tmp_path / "half.jsonl")]
    options = ["--order", "3", "--prune", "0", "1", "--discount-fallback"]
    assert main(["ngram", *halves, "--output", str(tmp_path / "a.arpa"), *options]) == 0
    assert main(["ngram", str(tmp_path / "all.txt"), "--output", str(tmp_path / "b.arpa"), *options]) == 0
    a, b = (ArpaModel.read(tmp_path / name).probabilities for name in ("a.arpa", "b.arpa"))
    assert a == pytest.approx(b)
    capsys.readouterr()
    assert main(["perplexity", str(tmp_path / "a.arpa"), str(tmp_path / "all.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] < 8
    assert main(["ngram", str(tmp_path / "gone"), "--output", str(tmp_path / "c.arpa")]) == 2
    assert "gone" in capsys.readouterr().err
    assert math.isinf(ArpaModel(1, {("a",): 0.0}, {}).score([], "b"))
