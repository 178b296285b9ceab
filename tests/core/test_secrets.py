"""Redaction: secrets of every shape, wherever they stand, and ordinary text."""

from __future__ import annotations

import time

import pytest

from simdist.core.secrets import HIDDEN, redacted, redacted_words

RANDOM = "aB3dE6gH9jK2mN5pQ8sTu1Wx4Z"
HEX = "0123456789abcdef0123456789abcdefdeadbeef"
AWS = "wJalrXUtnFEMI7K7MDENGabPxRfiCYzEXAMPLE9k"
PEM_BODY = "MIIEpAIBAAKCAQEA7bq9s0Jq3Kx2v5yR8tN1wLcZ\nuQ4h6aE0dPzXoYb2VfG7iTsKmWnJ3lCr5eHg"

SHAPES = {  # the text, and what of it must be gone
    "Hugging Face": ("hf_" + "AbCdEfGhIjKlMnOpQ" * 2, "AbCdEfGh"),
    "GitHub, classic": ("ghp_" + "a1B2" * 9, "a1B2"),
    "GitHub, OAuth": ("gho_" + "a1B2" * 9, "a1B2"),
    "GitHub, app": ("ghs_" + "a1B2" * 9, "a1B2"),
    "GitHub, fine-grained": (f"github_pat_11ABCDEFG0a1B2c3D4e5F6_{RANDOM * 2}", RANDOM),
    "GitLab": (f"glpat-{RANDOM}", RANDOM),
    "AWS access key": ("AKIAIOSFODNN7EXAMPLQ", "IOSFODNN7"),
    "AWS temporary key": ("ASIAIOSFODNN7EXAMPLQ", "IOSFODNN7"),
    "AWS secret key": (AWS, AWS),
    "AWS secret key, with a slash": ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "K7MDENG"),
    "AWS secret key, named": (f"aws_secret_access_key = {AWS}", AWS),
    "OpenAI": (f"sk-{RANDOM}T3BlbkFJ{RANDOM}", RANDOM),
    "OpenAI, project": (f"sk-proj-{RANDOM}_{RANDOM}-{RANDOM}", RANDOM),
    "Anthropic": (f"sk-ant-api03-{RANDOM}-{RANDOM}AA", RANDOM),
    "Slack": (f"xoxb-123456789012-1234567890123-{RANDOM}", RANDOM),
    "Slack, webhook": (f"https://hooks.slack.com/services/T0123/B0123/{RANDOM}", RANDOM),
    "Google": (f"AIzaSy{RANDOM}1b2C3d4", RANDOM),
    "JWT": (f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{RANDOM}", RANDOM),
    "bearer": (f"Authorization: Bearer {RANDOM}", RANDOM),
    "basic": ("Authorization: Basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg"),
    "header": (f"X-Api-Key: {RANDOM}", RANDOM),
    "PEM": (f"-----BEGIN RSA PRIVATE KEY-----\n{PEM_BODY}\n-----END RSA PRIVATE KEY-----", "\nuQ4h6aE0dPz"),
    "PEM, OpenSSH": (f"-----BEGIN OPENSSH PRIVATE KEY-----\n{PEM_BODY}\n-----END OPENSSH PRIVATE KEY-----", "MIIEpAIB"),
    "PEM, cut off": (f"-----BEGIN PRIVATE KEY-----\n{PEM_BODY}", "uQ4h6aE0dPz"),
    "signed URL, S3": (f"https://b.s3.amazonaws.com/k?X-Amz-Expires=60&X-Amz-Signature={'0a1b' * 16}", "0a1b"),
    "signed URL, Google": (f"https://storage.googleapis.com/b/k?X-Goog-Signature={'0a1b' * 16}&x=1", "0a1b"),
    "signed URL, Azure": (f"https://a.blob.core.windows.net/k?sv=2022-11-02&sig={RANDOM}%3D", RANDOM),
    "signature": (f"sig={RANDOM}%2F{RANDOM}%3D", RANDOM),
    "URL with a password": ("https://me:hunter2hunter2@example.org/x", "hunter2"),
    "URL with @ in a password": ("postgresql://me:hunter2@hunter2@db:5432/x", "hunter2"),
    "URL with a token": (f"git+https://{RANDOM}@example.org/x.git", RANDOM),
    "netrc": ("machine api.wandb.ai login user password hunter2hunter2", "hunter2"),
    "netrc on lines": ("machine api.wandb.ai\n  login user\n  password hunter2hunter2", "hunter2"),
    "wandb": (f"wandb_key={HEX}", HEX),
    "wandb, any name": (f"mine: '{HEX}'", HEX),
    "wandb, login": (f"wandb login --relogin {HEX}", HEX),
    "wandb, local": (f"local-{HEX}", HEX),
    "wandb, new": ("wandb_v1_" + "aB3" * 12, "aB3"),
    "PyPI": (f"pypi-AgEIcHlwaS5vcmc{RANDOM * 2}", RANDOM),
    "npm": ("npm_" + "a1B2" * 9, "a1B2"),
    "variable": ("MY_TOKEN=hunter2hunter2", "hunter2"),
    "variable, secret": ("export CLIENT_SECRET='hunter2 hunter2'", "hunter2"),
    "variable, password": ("PASSWORD=hunter2,hunter2;hunter2", "hunter2"),
    "variable, key": ("COMET_API_KEY: hunter2hunter2", "hunter2"),
    "variable, JSON": ('{"api_key": "hunter2 hunter2", "a": 1}', "hunter2"),
    "variable, Python": ("os.environ['HF_TOKEN'] = 'hunter2hunter2'", "hunter2"),
    "string with a prefix": ("api_key=rb'hunter2hunter2'", "hunter2"),
    "string in three quotes": ('password = """hunter2\nhunter2"""', "hunter2"),
    "JSON in a string": ('"{\\"token\\": \\"hunter2\\"}"', "hunter2"),
    "cookie": ("Cookie: session=hunter2hunter2; id=hunter2", "hunter2"),
    "option": ("--hub-token hunter2hunter2", "hunter2"),
    "option with =": ("--password=hunter2hunter2", "hunter2"),
}


@pytest.mark.parametrize(("text", "secret"), SHAPES.values(), ids=SHAPES)
def test_a_secret_of_any_shape_is_hidden_wherever_it_stands(text: str, secret: str) -> None:
    lines = "".join(f"+    {line}\n" for line in text.splitlines())
    word = redacted_words(["train", text, "--seed", "1"], {})
    difference = redacted(f"--- a/x.sh\n+++ b/x.sh\n@@ -1 +1,2 @@\n-old\n{lines} kept\n", {})
    code = redacted(f"+call({text!r}, seed=1)\n", {})
    value = redacted(text, {"PATH": "/usr/bin"})
    for shown in (word[1], difference, code, value):
        assert secret not in shown
        assert HIDDEN in shown
        assert redacted(shown, {}) == shown, "a snapshot's diff is redacted twice"
    assert [word[0], *word[2:]] == ["train", "--seed", "1"]
    assert difference.startswith("--- a/x.sh\n+++ b/x.sh\n")
    assert difference.endswith("\n kept\n")


@pytest.mark.parametrize(
    "command",
    [
        f"wandb login --relogin {HEX}",
        f"train {HEX}",
        f"curl -H Authorization: Bearer {RANDOM}",
        f"curl -H X-Api-Key: {RANDOM}",
        "machine api.wandb.ai login user password hunter2hunter2",
        "train --hub-token hunter2hunter2",
    ],
)
def test_a_secret_in_a_word_of_its_own_is_hidden(command: str) -> None:
    words = command.split()
    shown = redacted_words(words, {})
    assert shown[-1] == HIDDEN
    assert shown[0] == words[0]


ORDINARY = [
    f"sha256 {'0f3a' * 16}",
    f"sha256: {'0f3a' * 16}",
    f"commit {HEX}",
    f"git_commit={HEX}",
    f'"git_commit": "{HEX}"',
    f"--revision {HEX}",
    f"pip install git+https://github.com/me/simdist@{HEX}",
    f"/home/me/.cache/huggingface/hub/models--x/snapshots/{HEX}/config.json",
    "index 1f3e5a7b9c..d0e1f2a3b4 100644",
    "6fa459ea-ee8a-3ca4-894e-db77e160355e",
    "run id: 6fa459ea-ee8a-3ca4-894e-db77e160355e",
    "runs/sim_librispeech-1f3e5a7b/checkpoints/step_00001200/model.safetensors",
    "/data/LibriSpeech/train-clean-100/84/121123/84-121123-0001.flac",
    "LibriSpeech/LibriSpeech960/TrainClean100",  # 40 characters, as an AWS secret key
    "homes/user7/GreedyInfoMax/vGIM2/Libri100",
    "/home/me/GreedyInfoMax/vGIM2/LibriSpeech100",
    "https://www.openslr.org/resources/12/train-clean-100.tar.gz",
    "https://me@example.org:8080/x?page=2&sort_key=loss",
    "git@github.com:me/simdist.git",
    "vgim_thesis-8434f7ab-seed3",
    "task-sk-learn-baseline",
    "loss 3.243 lr=0.01 1e-05 nan",
    "+    beta: 0.001  # was 0.01",
    "3 tokens per second; the secret of step 7",
    "--data.root /data/tokens",
    "ms_per_token=0.25",
    "max_token: 512",
    "+        self.mask_token = nn.Parameter(torch.zeros(1, dim))",
    "+def embed(token: torch.Tensor, password: str | None = None) -> None:",
    '+        return {"token": self._token, "pid": os.getpid()}',
    '+    login(token=os.environ["HF_TOKEN"])',
    "export HF_TOKEN=$(cat ~/.token) WANDB_API_KEY=$WANDB_API_KEY X_SECRET=`cat ~/.x`",
    "forward_pass = model(x)",
    "the login shell asks for a password first",
    '+    if text.startswith("-----BEGIN CERTIFICATE-----"):',
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_readable(text: str) -> None:
    assert redacted(text, {}) == text
    assert redacted(f"+{text}\n", {}) == f"+{text}\n"
    assert redacted_words(["train", text], {}) == ["train", text]


def test_a_commit_after_its_option_is_no_key_on_a_command_line() -> None:
    assert redacted_words(["x", "--revision", HEX, HEX], {}) == ["x", "--revision", HEX, HIDDEN]


def test_a_private_key_in_code_does_not_hide_the_rest_of_a_diff() -> None:
    difference = '+    if "-----BEGIN PRIVATE KEY-----" in text:\n+        return\n'
    assert redacted(difference, {}).endswith('" in text:\n+        return\n')


LONG = [
    "a" * 300_000,
    "-" * 300_000,
    "a:" * 150_000,
    "://a:" * 60_000,
    "key-----BEGIN " * 20_000,
    "+ self.x(y)\n" * 30_000,
]


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:9])
def test_a_long_diff_is_redacted_in_seconds(text: str) -> None:
    begin = time.perf_counter()
    redacted(text, {})
    assert time.perf_counter() - begin < 5
