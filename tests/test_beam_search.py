"""Beam search: equal to greedy and Viterbi where nothing else is weighed, to all paths where the beam holds them."""

import base64
import gzip
import itertools
import json
import math

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Wav2Vec2CTCTokenizer,
)

from hf_wav2vec_family.decoding import beam_search
from hf_wav2vec_family.decoding.arpa import ArpaModel
from hf_wav2vec_family.decoding.beam_search import BeamSearchDecoder, BeamSettings, import_flashlight
from hf_wav2vec_family.decoding.decoder_folder import load_decoder, save_decoder
from hf_wav2vec_family.decoding.lexicon import read_lexicon, spell_words, write_lexicon
from hf_wav2vec_family.decoding.ngram import NgramSettings, train_ngram
from hf_wav2vec_family.decoding.rescoring import CausalLanguageModel
from hf_wav2vec_family.decoding.text_lines import units_of
from hf_wav2vec_family.decoding.tuning import Spoken, errors, tune
from hf_wav2vec_family.tokenization_wav2letter import Wav2LetterCTCTokenizer
from hf_wav2vec_family.viterbi import best_paths

pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")

SYMBOLS = ["<pad>", "|", "A", "B"]
BLANK, DELIMITER = 0, 1
UNBOUNDED = {"beam_size": 100_000, "beam_threshold": 1e9}
WORDS = ["A", "AB", "BA", "BB"]
# `build_binary trie` of KenLM makes this of the file of `word_lm` below
BINARY_WORD_LM = (
    "H4sIAAAAAAACA8vNTSxQyMlVyCgpKbDS18/OSE1My0zNSdFLzs/VT85PSVVIyy/KTSxRKEstKs7Mz1Mw5WJAgAZ7ILGfEUj8BwKQCCNUhhlMHr"
    "BngoqBMDtUjg9K8yKZxAalC+oU91q2lTKwN3T5X+ISNf957C3b8e+zvLhyvn+sLX6QrV6sYXxhek91XvDDzNpJ057A9AdvmbQf5CCEiccOzVaY"
    "tQ/Gm6UgtR+ZHxERAeazIMmD9LOhyXOh8XkYUAEfA3ZQ+NL9R25Txq9DaoZbakEaL3jy5N5X61i2vkLI+fZ2zkUvrRWz/oCVTHr2XbEOpGSJ2d"
    "caeaDeBb7CLo9BgdUx98iFb6CQW6YONAXkvFliO5eDTHnvJzjvGciU3ZkTq3+BTNlkp9ZRh+xCB2aYW0727vvKeeLmHfF/AcLxP5x9ayau9f4U"
    "uU3v5PbJxUnxkmZ5NUxns7/22l85og5SoaN2tXb1gqnfGZH9Y1Oal23HYFNsx+DI4OjEYKMPZDk5Mjg5MQAATODKxEICAAA="
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "vocab.json"
    file.write_text(json.dumps({symbol: i for i, symbol in enumerate(SYMBOLS)}))
    return Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None, unk_token="<pad>")


@pytest.fixture(scope="module")
def word_lm(tmp_path_factory):
    """A trigram model of words that knows some orders of them better than others."""
    file = tmp_path_factory.mktemp("lm") / "words.arpa"
    lines = ["A AB A", "AB A BB", "BA A", "A AB", "BB A AB", "AB BA"]
    train_ngram([line.split() for line in lines], file, NgramSettings(order=3, discount_fallback=True))
    return file


@pytest.fixture(scope="module")
def symbol_lm(tmp_path_factory):
    file = tmp_path_factory.mktemp("lm") / "symbols.arpa"
    lines = ["A B A | A", "B B | A B", "A | A B", "B | B A"]
    train_ngram([line.split() for line in lines], file, NgramSettings(order=2, discount_fallback=True))
    return file


def emissions_of(num_frames, seed=0, num_symbols=4):
    return 2 * torch.randn(num_frames, num_symbols, generator=torch.Generator().manual_seed(seed))


def all_paths(scores, transitions=None):
    """(path, score) of every path through [T, V]."""
    table = scores.tolist()
    changes = None if transitions is None else transitions.tolist()
    for path in itertools.product(range(len(table[0])), repeat=len(table)):
        score = sum(row[symbol] for row, symbol in zip(table, path, strict=True))
        if changes is not None:
            score += sum(changes[to][source] for source, to in itertools.pairwise(path))
        yield path, score


def spelled(path, blank=None):
    """Symbols of a path that begins in silence."""
    symbols = [symbol for symbol, _ in itertools.groupby(path)]
    symbols = symbols[1:] if path[0] == DELIMITER else symbols
    return tuple(symbol for symbol in symbols if symbol != blank)


def combined(scores, log_add):
    """Best or summed score under each text."""
    if log_add:
        return {text: torch.tensor(values).double().logsumexp(0).item() for text, values in scores.items()}
    return {text: max(values) for text, values in scores.items()}


def log10_p(model, units):
    history = ("<s>", *units, "</s>")
    return sum(model.score(history[:i], history[i]) for i in range(1, len(history)))


def test_a_beam_of_one_without_language_model_is_greedy(tokenizer):
    decoder = BeamSearchDecoder(tokenizer, BeamSettings(beam_size=1))
    for seed in range(20):
        emissions = emissions_of(40, seed)
        (best,) = decoder.decode(emissions)
        assert best.symbols == emissions.argmax(dim=-1).tolist()
        assert best.text == tokenizer.decode(emissions.argmax(dim=-1))
        assert best.score == pytest.approx(emissions.log_softmax(-1).amax(-1).sum().item(), rel=1e-5)


@pytest.mark.parametrize("with_delimiter", [True, False])
def test_without_language_model_and_lexicon_asg_has_the_viterbi_path(tokenizer, tmp_path, with_delimiter):
    if not with_delimiter:
        (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate("abcd")}))
        tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None, unk_token="d")
        tokenizer.word_delimiter_token = None
    for seed in range(12):
        emissions, transitions = emissions_of(1 + seed % 6, seed), emissions_of(4, seed + 100)
        decoder = BeamSearchDecoder(tokenizer, BeamSettings(**UNBOUNDED), transitions=transitions)
        viterbi = best_paths(emissions[None], transitions, torch.tensor([len(emissions)]))
        (best,) = decoder.decode(emissions)
        assert best.symbols == viterbi.paths[0].tolist()
        assert best.score == pytest.approx(viterbi.scores.item(), abs=1e-4)


@pytest.mark.parametrize("log_add", [False, True])
def test_an_unbounded_beam_without_lexicon_scores_what_all_paths_do(tokenizer, symbol_lm, log_add):
    emissions, model = emissions_of(5), ArpaModel.read(symbol_lm)
    settings = BeamSettings(lm_weight=1.7, silence_score=-0.3, log_add=log_add, **UNBOUNDED)
    scores = {}
    for path, score in all_paths(emissions.log_softmax(-1)):
        score += settings.silence_score * path.count(DELIMITER)
        scores.setdefault(spelled(path, BLANK), []).append(score)
    expected = combined(scores, log_add)
    for symbols in expected:
        expected[symbols] += settings.lm_weight * log10_p(model, [SYMBOLS[i] for i in symbols])
    decoder = BeamSearchDecoder(tokenizer, settings, language_model=symbol_lm)
    # Texts may be one for several spellings, that of a delimiter at the end for example: the best one counts.
    texts = {}
    for symbols, score in expected.items():
        text = tokenizer.decode([symbol for s in symbols for symbol in (s, BLANK)])
        texts[text] = max(score, texts.get(text, -math.inf))
    found = {hypothesis.text: hypothesis.score for hypothesis in decoder.decode(emissions, num_best=10_000)}
    assert found == pytest.approx(texts, abs=1e-4)


@pytest.mark.parametrize("log_add", [False, True])
@pytest.mark.parametrize("criterion", ["ctc", "asg"])
def test_an_unbounded_beam_with_a_lexicon_scores_what_all_paths_of_its_words_do(
    tokenizer, word_lm, criterion, log_add
):
    emissions, model = emissions_of(6, seed=3), ArpaModel.read(word_lm)
    transitions = None if criterion == "ctc" else emissions_of(4, seed=9)
    known = WORDS if criterion == "ctc" else WORDS[:-1]  # BB would need a replabel
    settings = BeamSettings(lm_weight=0.8, word_score=0.5, silence_score=-0.3, log_add=log_add, **UNBOUNDED)
    scores = {}
    for path, score in all_paths(emissions if transitions is not None else emissions.log_softmax(-1), transitions):
        if criterion == "asg" and path[-1] != DELIMITER:
            continue
        symbols = spelled(path, BLANK if criterion == "ctc" else None)
        words = [word for word in "".join(SYMBOLS[i] for i in symbols).split("|") if word]
        if all(word in known for word in words):
            score += settings.silence_score * path.count(DELIMITER) + settings.word_score * len(words)
            scores.setdefault(" ".join(words), []).append(score)
    expected = combined(scores, log_add)
    for text in expected:
        expected[text] += settings.lm_weight * log10_p(model, text.split())
    lexicon = spell_words(known, tokenizer)
    decoder = BeamSearchDecoder(tokenizer, settings, transitions=transitions, language_model=word_lm, lexicon=lexicon)
    hypotheses = decoder.decode(emissions, num_best=10_000)
    assert {hypothesis.text: hypothesis.score for hypothesis in hypotheses} == pytest.approx(expected, abs=1e-4)
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    assert all(len(hypothesis.symbols) == len(emissions) for hypothesis in hypotheses)


def test_a_binary_of_kenlm_is_the_model_that_its_arpa_is(tokenizer, word_lm, tmp_path):
    (tmp_path / "words.bin").write_bytes(gzip.decompress(base64.b64decode(BINARY_WORD_LM)))
    settings, lexicon = BeamSettings(lm_weight=0.8, word_score=0.5), spell_words(WORDS, tokenizer)
    of_arpa, of_binary = (
        BeamSearchDecoder(tokenizer, settings, language_model=file, lexicon=lexicon).decode(emissions_of(12), 20)
        for file in (word_lm, tmp_path / "words.bin")
    )
    assert of_binary == of_arpa
    assert len(of_binary) == 20
    save_decoder(
        BeamSearchDecoder(tokenizer, settings, language_model=tmp_path / "words.bin", lexicon=lexicon), tmp_path / "d"
    )
    assert load_decoder(tmp_path / "d", tokenizer).decode(emissions_of(12), 20) == of_arpa


def test_a_long_search_in_steps_is_the_search_at_once(tokenizer, word_lm, monkeypatch):
    emissions = emissions_of(600, seed=5)
    for lexicon, language_model in ((None, None), (spell_words(WORDS, tokenizer), word_lm)):
        settings = BeamSettings(beam_size=20, lm_weight=1.0 if language_model else 0.0)
        decoder = BeamSearchDecoder(tokenizer, settings, language_model=language_model, lexicon=lexicon)
        (whole,) = decoder.decode(emissions)
        with monkeypatch.context() as patch:
            patch.setattr(beam_search, "FRAMES_PER_STEP", 100)
            patch.setattr(beam_search, "FRAMES_OPEN", 60)
            (stepwise,) = decoder.decode(emissions)
            with pytest.raises(ValueError, match="num_best must be 1 above 100 frames, got 2"):
                decoder.decode(emissions, num_best=2)
        assert stepwise.text == whole.text
        assert stepwise.symbols == whole.symbols
        assert len(whole.symbols) == 600


def test_replabels_are_written_out(tmp_path):
    symbols = ["|", "A", "B", "1", "2", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer = Wav2LetterCTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None, unk_token="<pad>")
    path = [0, 1, 1, 3, 2, 0, 2, 0]  # | A A 1 B | B |
    emissions = 10 * torch.eye(5)[path]
    lexicon = spell_words(["AAB", "B"], tokenizer)
    assert lexicon["AAB"] == [["A", "1", "B", "|"]]
    for words in (None, lexicon):
        decoder = BeamSearchDecoder(tokenizer, transitions=torch.zeros(5, 5), lexicon=words)
        (best,) = decoder.decode(emissions)
        assert best.text == "AAB B"
        assert best.symbols == path


def test_units_of_a_tokenizer_are_those_that_a_search_without_lexicon_asks_for(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "ctc")
    assert list(units_of(["AB  A"], tmp_path / "ctc")) == [["A", "B", "|", "A"]]
    with pytest.raises(ValueError, match="has no symbol for something in 'AXB'"):
        list(units_of(["AXB"], tmp_path / "ctc"))
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate("|AB1")} | {"<pad>": 4}))
    asg = Wav2LetterCTCTokenizer(
        str(tmp_path / "vocab.json"), replabels=["1"], bos_token=None, eos_token=None, unk_token="<pad>"
    )
    asg.save_pretrained(tmp_path / "asg")
    assert list(units_of(["AAB"], tmp_path / "asg")) == [["A", "1", "B", "|"]]


@pytest.mark.parametrize("with_lexicon", [True, False])
def test_a_hot_word_adds_its_boost_once_and_only_when_it_is_whole(tokenizer, with_lexicon):
    emissions = emissions_of(6, seed=2)
    lexicon = spell_words([*WORDS, "ABA"], tokenizer) if with_lexicon else None
    plain = BeamSearchDecoder(tokenizer, BeamSettings(**UNBOUNDED), lexicon=lexicon)
    hot = BeamSearchDecoder(
        tokenizer, BeamSettings(hot_word_boost=3.0, **UNBOUNDED), lexicon=lexicon, hot_words=["AB", "BA A"]
    )
    before = {h.text: h.score for h in plain.decode(emissions, num_best=10_000)}
    after = {h.text: h.score for h in hot.decode(emissions, num_best=10_000)}
    boosts = {"AB": 3, "A": 0, "ABA": 0, "AB A": 3, "A AB": 3, "BA A": 6, "BA": 0, "BA AB": 3, "AB AB": 6, "": 0}
    found = {text: after[text] - before[text] for text in boosts if text in before}
    assert len(found) >= 8
    assert found == pytest.approx({text: boosts[text] for text in found}, abs=1e-4)


def test_a_hot_word_that_the_lexicon_lacks_can_come(tokenizer, word_lm):
    emissions = 8 * torch.eye(4)[[2, 3, 3, 0, 3, 1]]  # ABB
    lexicon = spell_words(WORDS, tokenizer)
    plain = BeamSearchDecoder(tokenizer, BeamSettings(lm_weight=1.0), language_model=word_lm, lexicon=lexicon)
    assert plain.decode(emissions)[0].text != "ABB"
    assert plain.with_hot_words(["ABB"], boost=5.0).decode(emissions)[0].text == "ABB"


@pytest.fixture(scope="module")
def causal_lm():
    """A tiny GPT-2 of characters with random weights."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    characters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(["<eos>", " ", "a", "b"])}, "<eos>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=4, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    )
    model.lm_head.weight.data.normal_()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<eos>")
    return CausalLanguageModel(model, tokenizer, text_case="lower")


def test_a_causal_language_model_scores_the_product_of_its_steps_and_batches_change_nothing(causal_lm):
    texts = ["AB A", "", "BBABAA"]
    ids = {" ": 1, "A": 2, "B": 3}
    for text, score in zip(texts, causal_lm.score(texts), strict=True):
        row, total = [0], 0.0
        for token in [*(ids[letter] for letter in text), 0]:
            with torch.no_grad():
                total += causal_lm.model(torch.tensor([row])).logits[0, -1].log_softmax(-1)[token].item()
            row.append(token)
        assert score == pytest.approx(total / math.log(10), abs=1e-5)
    with pytest.raises(ValueError, match="has 41 tokens, the model has 32 positions"):
        causal_lm.score(["A" * 40])


def test_rescoring_adds_the_weighted_score_of_the_causal_model_and_orders_by_it(tokenizer, causal_lm):
    emissions = emissions_of(6)
    plain = BeamSearchDecoder(tokenizer).decode(emissions, num_best=8)
    settings = BeamSettings(rescoring_weight=2.0, num_rescored=8)
    rescored = BeamSearchDecoder(tokenizer, settings, causal_lm=causal_lm).decode(emissions, num_best=8)
    judged = causal_lm.score([hypothesis.text for hypothesis in plain])
    expected = {h.text: h.score + 2 * score for h, score in zip(plain, judged, strict=True)}
    assert {h.text: h.score for h in rescored} == pytest.approx(expected, abs=1e-4)
    assert rescored[0].text == max(expected, key=expected.get) != plain[0].text


@pytest.fixture(scope="module")
def spoken(tokenizer):
    """Noisy emissions of sentences that the word model knows."""
    generator, result = torch.Generator().manual_seed(0), []
    for text in ["A AB A", "AB A BB", "BA A", "A AB", "BB A AB", "AB BA"] * 2:
        path = [i for letter in text.replace(" ", "|") for i in (SYMBOLS.index(letter), BLANK)]
        noise = 1.6 * torch.randn(len(path), 4, generator=generator)
        result.append(Spoken(text, 2 * torch.eye(4)[path] + noise))
    return result


def wrong_words(decoder, spoken):
    return errors([one.reference for one in spoken], [decoder.decode(one.emissions)[0].text for one in spoken])[0]


def test_tuned_weights_are_better_than_none_and_stored_ones_reproduce(tokenizer, word_lm, causal_lm, spoken, tmp_path):
    decoder = BeamSearchDecoder(
        tokenizer, language_model=word_lm, lexicon=spell_words(WORDS, tokenizer), causal_lm=causal_lm
    )
    tuning = tune(decoder, spoken, beam_sizes=(5, 20), num_trials=12)
    assert tuning.wer < tuning.wer_without_language_model
    assert {trial.settings.beam_size for trial in tuning.trials} == {5, 20}
    assert tune(decoder, spoken, beam_sizes=(5, 20), num_trials=12) == tuning
    tuned = decoder.with_settings(tuning.settings)
    num_words = sum(len(one.reference.split()) for one in spoken)
    assert wrong_words(tuned, spoken) == round(tuning.wer * num_words)
    save_decoder(tuned, tmp_path / "decoder", tuning={"wer": tuning.wer})
    save_decoder(tuned, tmp_path / "decoder")  # over itself
    loaded = load_decoder(tmp_path / "decoder", tokenizer)
    assert loaded.settings == tuning.settings
    for one in spoken:
        assert loaded.decode(one.emissions, num_best=5) == tuned.decode(one.emissions, num_best=5)


def test_a_lexicon_is_read_as_it_was_written(tokenizer, tmp_path):
    lexicon = {**spell_words(WORDS, tokenizer), "MANY": [["A", "|"], ["B", "B", "|"]]}
    write_lexicon(lexicon, tmp_path / "lexicon.txt")
    assert read_lexicon(tmp_path / "lexicon.txt") == lexicon
    (tmp_path / "lexicon.txt").write_text("A A |\nB\n")
    with pytest.raises(ValueError, match=r"line 2: expected a word and its symbols"):
        read_lexicon(tmp_path / "lexicon.txt")


def test_words_that_no_symbols_spell_are_left_out_and_counted(tokenizer, caplog):
    assert set(spell_words(["AB", "CAB", "A"], tokenizer)) == {"AB", "A"}
    assert "1 of 3 words" in caplog.text
    with pytest.raises(ValueError, match="none of 1 is of the tokenizer's symbols"):
        spell_words(["XYZ"], tokenizer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lm_weight": 1.0}, "lm_weight=1.0 has no effect without language_model"),
        ({"word_score": 1.0}, "word_score=1.0 has no effect without lexicon"),
        ({"rescoring_weight": 1.0}, "rescoring_weight=1.0 has no effect without causal_lm"),
        ({"hot_word_boost": 1.0}, "hot_word_boost=1.0 has no effect without hot_words"),
        ({"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ({"beam_threshold": 0}, "beam_threshold must be above 0, got 0"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused(tokenizer, fields, message):
    with pytest.raises(ValueError, match=message):
        BeamSearchDecoder(tokenizer, BeamSettings(**fields))


def test_emissions_of_another_shape_and_files_that_are_no_model_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"expected \[T, 4\], got \[3, 5\]"):
        BeamSearchDecoder(tokenizer).decode(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="there is no file"):
        BeamSearchDecoder(tokenizer, language_model=tmp_path / "gone.arpa")
    train_ngram([["A"]], tmp_path / "one.arpa", NgramSettings(order=1, discount_fallback=True))
    with pytest.raises(ValueError, match=r"KenLM can't read .*one\.arpa"):
        BeamSearchDecoder(tokenizer, language_model=tmp_path / "one.arpa").decode(torch.zeros(3, 4))
    repeated = BeamSearchDecoder(tokenizer, transitions=torch.zeros(4, 4), lexicon=spell_words(["BB"], tokenizer))
    with pytest.raises(ValueError, match="BB repeats a symbol, which ASG can't hear"):
        repeated.decode(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"expected a decoder, which has a file decoder\.json"):
        load_decoder(tmp_path, tokenizer)


def test_without_flashlight_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "flashlight.lib.text", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-wav2vec-family\[decode\]'"):
        import_flashlight()
