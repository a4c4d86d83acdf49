"""`prismatic push`: what is written is the model with a card of its own files, and what is uploaded is that folder."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import forked
import pytest
import torch
import yaml
from golden_cases import ROOT
from huggingface_hub import ModelCard

import prismatic
from recipes.push import main, push, without_places

ARGUMENTS = (
    "--data.annotations miniature:48 --data.workers 0 --data.held_out_limit 1 --global_batch_size 8 "
    "--per_device_batch_size 4 --max_steps 2 --eval_tasks [vsr] --eval_root miniature:8 --lora.rank 4"
).split()


def a_run(root: Path, stage: str) -> Path:
    done = forked.run(["recipes/finetune.py", *ARGUMENTS, "--stage", stage, "--run_root", str(root), "--run_id", stage])
    assert done.returncode == 0, done.stderr[-3000:]
    return root / stage


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(root):
    return a_run(root, "finetune")


@pytest.fixture(scope="module")
def pushed(run):
    out = run.parent / "pushed"
    assert push(str(run), "someone/my-vlm", dry_run=True, out=out, datasets=["a/b"], license="mit").startswith("wrote")
    return out


@torch.no_grad()
def logits(place):
    model, processor = prismatic.load(place)
    ids = torch.cat(
        [torch.full((1, processor.num_image_tokens), model.config.image_token_id), torch.arange(3, 9)[None]], 1
    )
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, pixel_values=pixels).logits


def test_the_folder_is_the_model(run, pushed):
    assert torch.equal(logits(pushed), logits(run))
    written = "".join(path.read_text() for path in pushed.glob("*.*") if path.suffix in (".md", ".json", ".jinja"))
    for place in (str(ROOT), str(run.parent), str(Path.home() / ".cache"), str(Path.cwd())):
        assert place not in written, "a place on this disk is published"


def test_the_card_says_what_the_files_of_the_run_say(run, pushed):
    card = ModelCard.load(pushed / "README.md")
    results = json.loads((run / "eval" / "results.json").read_text())
    task = results["tasks"]["vsr"]
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.library_name == "transformers"
    assert card.data.datasets == ["a/b"] and card.data.license == "mit" and card.data.base_model is None
    (result,) = card.data.eval_results
    assert result.dataset_type == "miniature-vsr" and "drawn scenes" in result.dataset_name
    assert result.metric_value == task["metrics"]["accuracy"] and result.dataset_split == task["split"]
    assert result.metric_args == {"interval_95": task["intervals"]["accuracy"]}

    low, high = task["intervals"]["accuracy"]
    row = next(line for line in card.text.splitlines() if line.startswith("| vsr, drawn scenes"))
    assert f"| {task['examples']} | accuracy | {task['metrics']['accuracy']:.1%} | {low:.1%} .. {high:.1%} |" in row
    assert results["commit"] in card.text and "allow_partial" in card.text
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("learning_rate", "global_batch_size", "llm", "projector", "seed"):
        assert f"| `{name}` | `{settings[name]}` |" in card.text
    assert "run_root" not in card.text and "train.json`, 48 rows, SHA-256 `" in card.text
    assert "## Code\n\nThis model was written for the hub by commit `" in card.text


def test_the_card_of_published_parts(run, tmp_path):
    """Ids of the hub are named as the hub wants them; what is on this disk is not."""
    from recipes.model_card import model_card, read_run

    config = json.loads((run / "checkpoints" / "epoch-01" / "config.json").read_text())
    config["vision_config"] |= {
        "arch": "vit_large_patch14_clip_quickgelu_336.openai",
        "weights": None,
        "aligned": False,
    }
    known = read_run(run, [])
    known.settings.update(
        llm="vicuna-v15-7b", init_from="/home/me/runs/earlier", data={"annotations": "/d/llava_v1_5_mix665k.json"}
    )
    known.evaluations[0]["data_root"] = "/data"
    (tmp_path / "README.md").write_text(model_card("someone/mine", config, known, None, []))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == ["lmsys/vicuna-7b-v1.5", "timm/vit_large_patch14_clip_quickgelu_336.openai"]
    assert card.data.datasets == ["liuhaotian/LLaVA-Instruct-150K"] and card.data.eval_results[0].dataset_name == "vsr"
    assert "`d/llava_v1_5_mix665k.json`" in card.text and "/home/me" not in card.text and "runs/earlier" in card.text
    bare = model_card("someone/mine", config, read_run(tmp_path, []), None, [])
    assert "has not been evaluated" in bare and "Not recorded" in bare and "model-index" not in bare


def test_the_code_on_the_card_runs(pushed, tmp_path, monkeypatch):
    from PIL import Image

    Image.new("RGB", (60, 40), "red").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", (pushed / "README.md").read_text(), re.S):
        exec(block.replace("someone/my-vlm", str(pushed)), {})


@pytest.mark.slow
@torch.no_grad()
def test_adapters_are_merged(root):
    run = a_run(root, "lora")
    out = root / "pushed-lora"
    push(str(run), "someone/adapted", dry_run=True, out=out)
    assert not list(out.glob("adapter*")) and torch.equal(logits(out), logits(run))
    card = (out / "README.md").read_text()
    assert "LoRA adapters are merged" in card and '"rank": 4' in card and "vsr, drawn scenes" in card


def test_a_model_without_a_run_and_a_card_that_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["miniature", "someone/small", "--dry_run", "--dtype", "bfloat16"])
    card = (tmp_path / "exported" / "small" / "README.md").read_text()
    assert "has not been evaluated" in card and "stored in bfloat16" in card
    assert next(prismatic.load("exported/small", dtype=torch.bfloat16)[0].parameters()).dtype == torch.bfloat16
    monkeypatch.setattr("recipes.model_card.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        push("miniature", "someone/other", dry_run=True)
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["small"], "half a folder is left"


def test_scores_of_other_weights_are_refused(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "eval", other)
    results = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps(results | {"model": "other", "model_fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match=r"scores of other \(vsr\) are of other weights than .*: evaluate it again"):
        push(str(run), "a/b", dry_run=True, out=tmp_path / "out", eval=[str(other)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["miniature", "my-vlm"], "'my-vlm' is no name of a repository: expected OWNER/NAME"),
        (["miniature", "a/b/c"], "is no name of a repository"),
        (["nothing", "a/b", "--dry_run"], "no run nothing"),
        (["miniature", "a/b", "--dry_run", "--out", "."], "exists already"),
        (["miniature", "a/b", "--dry_run", "--eval", "nowhere"], "nowhere holds no results.json"),
        (["miniature", "a/b"], "no token of the Hugging Face hub"),
    ],
)
def test_errors_are_one_line(argv, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert str(ended.value).startswith("error: ") and said in str(ended.value) and "\n" not in str(ended.value)
    assert not list(tmp_path.iterdir())


def test_places():
    config = {"text_config": {"_name_or_path": "/home/me/llm/base"}, "parts": [{"weights": "/a/b/c/d.safetensors"}]}
    assert without_places(config) == {
        "text_config": {"_name_or_path": "llm/base"}, "parts": [{"weights": "c/d.safetensors"}]
    }  # fmt: skip
    assert without_places({"_name_or_path": "owner/name"}) == {"_name_or_path": "owner/name"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; every file is sent inside the commit."""

    files, stale, status = {}, ["old.safetensors"], 200

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)

    def do_GET(self):
        if Hub.status != 200:
            self.answer({"error": "Invalid credentials"}, Hub.status)
        elif "whoami" in self.path:
            self.answer({"name": "someone", "type": "user"})
        elif "/tree/" in self.path:
            self.answer([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in Hub.stale])
        else:
            self.answer({"id": "someone/my-vlm", "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/someone/my-vlm"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"].startswith("deleted"):
                    Hub.files[line["value"]["path"]] = None
            url = f"http://{self.headers['Host']}/someone/my-vlm/commit/1"
            self.answer({"success": True, "commitOid": "1", "commitUrl": url, "hookOutput": ""})
        else:
            self.answer({})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """Arguments of a process that has this hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    Hub.status = 200


def called(endpoint, *argv, **environment):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0"} | environment
    command = [sys.executable, "-m", "prismatic", "push", *argv]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_what_the_hub_gets_is_the_folder(hub, run, pushed):
    done = called(hub, str(run), "someone/my-vlm", "--datasets", "a/b", "--license", "mit", "--private")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith(f"pushed {run} to {hub}/someone/my-vlm")
    assert Hub.files.pop("old.safetensors") is None, "weights of an earlier upload stay beside the new ones"
    assert Hub.files.keys() == {path.name for path in pushed.iterdir()}
    commit = re.compile(rb"hub by commit `.*`")  # that of the working tree, which may change meanwhile
    for name, content in Hub.files.items():
        assert commit.sub(b"", content) == commit.sub(b"", (pushed / name).read_bytes()), name


def test_a_hub_that_refuses_or_is_not_there(hub, run):
    Hub.status = 401
    for endpoint, environment, said in (
        (hub, {}, "the Hugging Face hub did not do it (whoami): "),
        ("http://127.0.0.1:9", {}, "(whoami): [Errno 111] Connection refused"),
        (hub, {"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
    ):
        done = called(endpoint, str(run), "someone/my-vlm", **environment)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert said in done.stderr and not done.stdout
