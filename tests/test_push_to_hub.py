"""What goes up is whole, complete and clean, and goes up at once or not at all."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import transformers
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from loopback_hub import LoopbackHub
from publications import configuration_of, save_ctc_run, write_card
from safetensors.torch import load_file, save_file

import hf_wav2vec_family as family
import push_to_hub
from model_cards.results import evaluation_files, results_of_run
from publishing.folder import faults_of_card, faults_of_files, files_of, model_folder, older_layout
from publishing.trial import Trial, load, try_apart
from publishing.upload import ATTEMPTS, Publication, Published, PublishingError, publish

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(monkeypatch):
    # large files take the way of Git LFS, which a server of a few lines can speak
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def run(tmp_path) -> Path:
    save_ctc_run(tmp_path / "run", "wav2vec2")
    write_card(tmp_path / "run", "wav2vec2", "user/small")
    return tmp_path / "run"


def publication_of(run: Path, **changes) -> Publication:
    """What `push_to_hub` would send of a run, without loading it in another process first."""
    folder = run / "model"
    files = {**files_of(folder), **older_layout(folder)}
    given = {"repo_id": "user/small", "files": files, "tag": "v1", "private": False, "message": "first"}
    return Publication(**{**given, **changes})


def send(publication: Publication, api: HfApi) -> Published:
    return publish(publication, api, wait_seconds=0.0)


def test_a_publication_is_one_commit_with_every_byte_and_a_tag_on_it(hub, api, run):
    publication = publication_of(run)
    published = send(publication, api)
    repository = hub.repository("user/small")
    first, commit = repository.commits
    assert first.title == "initial commit"
    assert repository.tags == {"v1": commit.oid}
    assert published.url.endswith(commit.oid)
    assert not repository.private
    assert not published.private
    sent = {name: content for name, content in commit.files.items() if name != ".gitattributes"}
    assert sent == {n: c if isinstance(c, bytes) else c.read_bytes() for n, c in publication.files.items()}


def test_a_second_version_takes_the_place_of_the_first_in_one_commit(hub, api, run):
    extra = {**publication_of(run).files, "model-00002-of-00002.safetensors": b"old"}
    send(publication_of(run, files=extra), api)
    (run / "model" / "README.md").write_text((run / "model" / "README.md").read_text() + "\nMore.\n")
    send(publication_of(run, tag="v2"), api)
    repository = hub.repository("user/small")
    assert len(repository.commits) == 3
    assert set(repository.head.files) == {".gitattributes", *publication_of(run).files}
    assert set(repository.tags) == {"v1", "v2"}
    assert repository.tags["v2"] == repository.head.oid


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("POST", "/api/repos/create"),
        ("POST", "/preupload/"),
        ("PUT", "/lfs/"),
        ("POST", "/commit/"),
        ("POST", "/tag/"),
    ],
)
def test_a_server_in_trouble_is_asked_again(hub, api, run, method, part):
    hub.fail(method, part, status=503, times=2)
    send(publication_of(run), api)
    repository = hub.repository("user/small")
    assert len(repository.commits) == 2
    assert repository.tags == {"v1": repository.head.oid}


@pytest.mark.parametrize(("method", "part"), [("PUT", "/lfs/"), ("POST", "/commit/")])
def test_a_server_that_fails_in_the_middle_leaves_nothing_that_anybody_sees(hub, api, run, method, part):
    hub.fail(method, part, times=1000)
    with pytest.raises(PublishingError, match="user/small was not published"):
        send(publication_of(run), api)
    repository = hub.repository("user/small")
    assert [commit.title for commit in repository.commits] == ["initial commit"]
    assert repository.tags == {}
    assert repository.private
    hub.failures.clear()
    send(publication_of(run), api)  # and it can be done again
    assert len(repository.commits) == 2
    assert repository.private  # for nobody can tell it from one that its owner made so


def test_an_old_version_stays_whole_when_a_new_one_fails(hub, api, run):
    send(publication_of(run), api)
    before = hub.repository("user/small").head
    (run / "model" / "README.md").write_text("---\nlicense: mit\n---\nnew\n")
    hub.fail("POST", "/commit/", times=1000)
    with pytest.raises(PublishingError):
        send(publication_of(run, tag="v2"), api)
    repository = hub.repository("user/small")
    assert repository.head is before
    assert set(repository.tags) == {"v1"}


def test_a_repository_that_moves_in_the_meantime_is_left_alone(hub, api, run):
    send(publication_of(run), api)
    repository = hub.repository("user/small")
    (run / "model" / "README.md").write_text("---\nlicense: mit\n---\nmine\n")

    def somebody_commits():
        hub.write(repository, {**repository.head.files, "README.md": b"theirs"}, "theirs")

    hub.fail("POST", "/preupload/", status=503, before=somebody_commits)
    with pytest.raises(PublishingError, match="has moved"):
        send(publication_of(run, tag="v2"), api)
    assert repository.head.files["README.md"] == b"theirs"


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, api, run):
    answer = hub.answer

    def lose_the_answer(method, url, headers, body):
        found = answer(method, url, headers, body)
        if "/commit/" in url:
            hub.answer = answer
            return type(found)(b"{}", 500, {})
        return found

    hub.answer = lose_the_answer
    send(publication_of(run), api)
    repository = hub.repository("user/small")
    assert len(repository.commits) == 2
    assert repository.tags == {"v1": repository.head.oid}


@pytest.mark.parametrize(
    "files", [{"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"}, {"app.py": b"print()"}]
)
def test_a_name_that_is_taken_by_something_else_is_refused(hub, api, run, files):
    before = hub.add("user/small", files).head
    with pytest.raises(PublishingError, match="is taken"):
        send(publication_of(run), api)
    assert hub.repository("user/small").head is before


def test_a_name_of_somebody_else_is_refused(hub, api, run):
    with pytest.raises(PublishingError, match="may not write"):
        send(publication_of(run, repo_id="stranger/small"), api)
    assert hub.repositories == {}


def test_a_tag_that_exists_does_not_move(hub, api, run):
    send(publication_of(run), api)
    (run / "model" / "README.md").write_text("---\nlicense: mit\n---\nnew\n")
    with pytest.raises(PublishingError, match="has v1 already"):
        send(publication_of(run), api)
    assert len(hub.repository("user/small").commits) == 2


def test_private_stays_private_and_never_goes_into_a_public_repository(hub, api, run):
    send(publication_of(run, private=True), api)
    assert hub.repository("user/small").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info("user/small")
    hub.repository("user/small").private = False
    with pytest.raises(PublishingError, match="is public"):
        send(publication_of(run, private=True, tag="v2"), api)


@pytest.mark.parametrize("token", ["hf_wrong", False])
def test_without_a_good_token_nothing_happens(hub, run, token):
    with pytest.raises(PublishingError, match="token") as refusal:
        send(publication_of(run), HfApi(endpoint=hub.url, token=token))
    assert hub.repositories == {}
    assert "hf_wrong" not in str(refusal.value)


def test_weights_are_sent_as_they_are_and_a_pinned_revision_does_not_follow(hub, api, run, tmp_path):
    send(publication_of(run), api)
    pinned = hub.repository("user/small").head
    hub.write(hub.repository("user/small"), {**pinned.files, "model.safetensors": b"other"}, "moved")
    path = api.hf_hub_download("user/small", "model.safetensors", revision="v1", cache_dir=tmp_path / "cache")
    assert load_file(path).keys() == load_file(run / "model" / "model.safetensors").keys()
    moved = api.hf_hub_download("user/small", "model.safetensors", cache_dir=tmp_path / "cache")
    assert Path(moved).read_bytes() == b"other"


FOREIGN = {
    "pytorch_model.bin": (pickle.dumps({}), "a pickle"),
    "optimizer.safetensors": (b"", "the state of a training run"),
    "checkpoints/step-1/model.safetensors": (b"", "the state of a training run"),
    "sample.flac": (b"fLaC", "audio"),
    "extra.safetensors": (pickle.dumps({}), "not safetensors"),
    "vocab.json": (pickle.dumps({}), "not what its name says"),
    "notes.txt": (b"see /home/me/corpus for more", "/home/me/corpus"),
    "special.json": (json.dumps({"file": "C:\\Users\\me"}).encode(), "a path on the machine"),
    "log.sqlite": (b"", "of no kind"),
    "trainer_state.json": (b"{}", "the state of a training run"),
    "data.json": (b'{"file": "file:///home/me/clip"}', "/home/me/clip"),
    "secret.py": (b"token = 'hf_" + b"a1B2" * 10 + b"'", "holds a token of the Hub"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_model_needs_is_refused_by_name(run, name):
    assert faults_of_files(run / "model") == []
    content, fault = FOREIGN[name]
    (run / "model" / name).parent.mkdir(parents=True, exist_ok=True)
    (run / "model" / name).write_bytes(content)
    assert [f for f in faults_of_files(run / "model") if f.startswith(name) and fault in f]
    with pytest.raises(ValueError, match="cannot go up"):
        push_to_hub.prepare(run, "user/small", tag="v1", private=False)


def test_a_path_in_the_metadata_of_weights_is_refused(run):
    weights = run / "model" / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "source": "/home/me/corpus"})
    (fault,) = faults_of_files(run / "model")
    assert "/home/me/corpus" in fault


def test_a_token_in_a_card_is_refused_and_not_repeated(run):
    token = "hf_" + "a1B2" * 10
    (fault,) = faults_of_card((run / "model" / "README.md").read_text() + f"\n`{token}`\n")
    assert "a token of the Hub" in fault
    assert token not in fault


def test_a_link_and_missing_weights_are_refused(run, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (run / "model" / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (run / "model" / "model.safetensors").unlink()
    link, weights = faults_of_files(run / "model")
    assert "a link" in link
    assert "no weights" in weights


def test_a_card_must_be_complete(run):
    card = (run / "model" / "README.md").read_text()
    assert faults_of_card(card) == []
    for broken, fault in (
        (card.replace("license: mit\n", ""), "license"),
        (card.replace("license: mit\n", "license: other\n"), "license_name"),
        (card.replace("## Limits\n", ""), "## Limits"),
        (card.replace("noise", "[to fill in]"), "to fill in"),
        (card.replace("noise", "/data/mine/noise"), "/data/mine/noise"),
        (card.replace("tags:", "tags: ["), "cannot be read"),
    ):
        (found,) = faults_of_card(broken)
        assert fault in found


def test_a_folder_without_a_card_or_without_a_model_is_refused(run, tmp_path):
    (run / "model" / "README.md").unlink()
    with pytest.raises(ValueError, match="there is no card"):
        push_to_hub.prepare(run, "user/small", tag="v1", private=False)
    with pytest.raises(ValueError, match=r"no config\.json"):
        model_folder(tmp_path)


def test_the_feature_extractor_is_saved_in_both_layouts(run):
    folder = run / "model"
    nested = json.loads((folder / "processor_config.json").read_text())
    (older,) = older_layout(folder).values()
    assert json.loads(older) == {**nested["feature_extractor"], "processor_class": nested["processor_class"]}
    (folder / "preprocessor_config.json").write_bytes(older)
    assert older_layout(folder) == {}


def write_scores(run: Path, path: str, kind: str, decoding: str = "greedy", **rates: float):
    source = {"path": path, "name": "clean", "split": "test", "kind": kind}
    scores = {**(rates or {"wer": 0.25, "cer": 0.12345}), "source": source, "decoding": decoding}
    (run / "test").mkdir()
    (run / "test" / "scores.json").write_text(json.dumps(scores))


def test_scores_of_a_run_become_metadata_and_the_files_of_the_hub_and_the_card_has_to_show_them(run, monkeypatch):
    write_scores(run, "owner/speech", "hub")
    monkeypatch.setattr(push_to_hub, "try_apart", lambda folder: None)
    with pytest.raises(ValueError, match=r"does not show WER, greedy 25\.00 % on owner/speech"):
        push_to_hub.prepare(run, "user/small", tag="v1", private=False)
    write_card(run, "wav2vec2", "user/small")
    publication, _ = push_to_hub.prepare(run, "user/small", tag="v1", private=False)
    results = ModelCard(publication.files["README.md"].decode()).data.eval_results
    assert [(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in results] == [
        ("owner/speech", "test", "wer", 25.0),
        ("owner/speech", "test", "cer", 12.35),
    ]
    entries = yaml.safe_load(publication.files[".eval_results/owner--speech.yaml"])
    assert [(e["dataset"]["id"], e["dataset"]["task_id"], e["value"]) for e in entries] == [
        ("owner/speech", "clean_test_wer", 25.0),
        ("owner/speech", "clean_test_cer", 12.35),
    ]


def test_a_phone_error_rate_is_a_result_and_what_a_beam_search_heard_is_not_called_greedy(run):
    write_scores(run, "owner/speech", "hub", decoding="beam search", per=0.125)
    results = results_of_run(run)
    assert [(r.metric_type, r.metric_name, r.metric_value) for r in results] == [("per", "PER, beam search", 12.5)]
    (content,) = evaluation_files(results).values()
    (entry,) = yaml.safe_load(content)
    assert entry["notes"] == "PER, beam search, in percent"
    scores = json.loads((run / "test" / "scores.json").read_text())
    (run / "test" / "scores.json").write_text(json.dumps({k: v for k, v in scores.items() if k != "decoding"}))
    with pytest.raises(ValueError, match="evaluate the model again"):
        results_of_run(run)


def test_scores_on_a_folder_name_it_without_its_path_and_make_no_file_of_the_hub(run, tmp_path, monkeypatch):
    write_scores(run, str(tmp_path / "corpora" / "corpus"), "manifest")
    write_card(run, "wav2vec2", "user/small")
    monkeypatch.setattr(push_to_hub, "try_apart", lambda folder: None)
    publication, _ = push_to_hub.prepare(run, "user/small", tag="v1", private=False)
    assert str(tmp_path) not in publication.files["README.md"].decode()
    assert not [name for name in publication.files if name.startswith(".eval_results")]


@pytest.fixture
def said(hub, run, monkeypatch, capsys):
    """Runs the command in this process, without the trial in another; gives what it says and how it ends."""
    monkeypatch.setattr(push_to_hub, "try_apart", lambda folder: Trial({"AutoModelForCTC": "Wav2Vec2ForCTC"}, "noise"))
    monkeypatch.setattr(push_to_hub, "HfApi", lambda: HfApi(endpoint=hub.url, token=hub.token))

    def run_command(*options: str) -> tuple[str, str | None]:
        try:
            push_to_hub.main([str(run), "user/small", *options])
            end = None
        except SystemExit as error:
            end = str(error.code)
        return "".join(capsys.readouterr()), end

    return run_command


def test_the_command_says_all_that_goes_up_and_sends_it_only_when_told_to(hub, run, said):
    text, end = said()
    assert end is None
    assert hub.requests == []
    assert "nothing was sent" in text
    assert "AutoModelForCTC  Wav2Vec2ForCTC" in text
    assert (run / "model" / "README.md").read_text().strip() in text
    text, end = said("--push")
    assert end is None
    sent = hub.repository("user/small").head.files
    for name in set(sent) - {".gitattributes"}:
        assert f"{len(sent[name]):>13,}  {hashlib.sha256(sent[name]).hexdigest()[:12]}  {name}" in text


def test_the_command_ends_in_an_error_that_says_why_and_not_the_token(hub, run, said):
    text, end = said("--push")
    hub.fail("POST", "/tag/", status=400, times=1000)
    (run / "model" / "vocab.json").write_text(json.dumps({"A": 0}))
    more, end = said("--push", "--tag", "v9")
    assert hub.token not in text + more + end
    assert "and not all of the rest" in end
    assert list(hub.repository("user/small").tags) == ["v0.1.0"]
    hub.failures.clear()
    more, end = said("--push", "--tag", "v9")  # finds the commit in place
    assert end is None
    assert "for everybody" in more
    assert len(hub.repository("user/small").commits) == 3
    assert hub.repository("user/small").tags["v9"] == hub.repository("user/small").head.oid
    (run / "model" / "optimizer.pt").touch()
    _, end = said("--push", "--tag", "v9")
    assert "optimizer.pt" in end


def test_the_command_loads_the_folder_apart_and_keeps_the_token_to_itself(hub, run, tmp_path):
    environment = {**os.environ, **hub.environment(HF_HOME=str(tmp_path / "cache"), HF_TOKEN=hub.token)}
    arguments = [sys.executable, str(ROOT / "push_to_hub.py"), str(run), "user/small", "--push", "--private"]
    hub.fail("POST", "/commit/", times=1)
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for auto_class, found in (("AutoModelForCTC", "Wav2Vec2ForCTC"), ("AutoProcessor", "Wav2Vec2Processor")):
        assert f"{auto_class}  {found}" in done.stdout
    assert "a second of noise: text" in done.stdout
    repository = hub.repository("user/small")
    assert repository.private
    assert len(repository.commits) == 2
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and hub.token.encode() in path.read_bytes()]
    published = [name for name, content in repository.head.files.items() if hub.token.encode() in content]
    assert (kept, published, hub.token in done.stdout + done.stderr) == ([], [], False)


def test_a_folder_that_does_not_load_elsewhere_is_refused(tmp_path):
    folder = save_ctc_run(tmp_path / "run", "cpc")
    (folder / "conv.py").unlink()
    with pytest.raises(ValueError, match=r"does not load without this package: (.|\n)*conv"):
        try_apart(folder)


def test_weights_that_do_not_fit_their_class_are_refused(run):
    weights = load_file(run / "model" / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, run / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit: .*lm_head\.weight"):
        load(str(run / "model"))


def test_what_gives_no_text_is_tried_by_its_features(tmp_path):
    prefix, config = configuration_of("vq-wav2vec")
    getattr(family, f"{prefix}ForPreTraining")(config).save_pretrained(tmp_path / "codes")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "codes")
    trial = load(str(tmp_path / "codes"))
    assert trial.answer == "features [1, 98, 8]"
    assert trial.classes["AutoModelForPreTraining"] == f"{prefix}ForPreTraining"
    assert trial.classes["AutoFeatureExtractor"] == "Wav2Vec2FeatureExtractor"

    tokenizer = family.SpeechCodesTokenizer.with_all_codes(2, 3)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    roberta = transformers.RobertaConfig(vocab_size=len(tokenizer), **sizes)
    for part in (transformers.RobertaForMaskedLM(roberta), tokenizer):
        part.save_pretrained(tmp_path / "bert")
    trial = load(str(tmp_path / "bert"))
    assert trial.classes == {
        "AutoModel": "RobertaModel",
        "AutoModelForMaskedLM": "RobertaForMaskedLM",
        "AutoModelForPreTraining": "RobertaForMaskedLM",
        "AutoTokenizer": "SpeechCodesTokenizer",
    }
    assert trial.answer == "features [1, 16, 8]"


def test_attempts_end(hub, api, run):
    hub.fail("POST", "/api/repos/create", times=1000)
    with pytest.raises(PublishingError, match="500"):
        send(publication_of(run), api)
    assert hub.requests.count("POST /api/repos/create") == ATTEMPTS
