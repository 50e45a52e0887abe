"""Runs in a process of its own, where Elastic cannot be imported; prints what it finds of each checkpoint as JSON."""

import json
import sys
from pathlib import Path

sys.modules["elastic"] = None  # type: ignore[assignment]
import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


def largest_difference(model, folder):
    with torch.no_grad():
        out = model.eval()(**torch.load(folder / "inputs.pt"))[0]
    return float((out.float() - torch.load(folder / "outputs.pt").float()).abs().max())


def error(auto_class, folder, **arguments):
    try:
        auto_class.from_pretrained(folder, **arguments)
    except Exception as raised:
        return type(raised).__name__
    return None


def look_at(folder):
    config = json.loads((folder / "config.json").read_text())
    name = next(n for n, target in config["auto_map"].items() if target.endswith("." + config["architectures"][0]))
    auto_class = getattr(transformers, name)
    model, loading = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    found = {
        "class": type(model).__name__,
        "wrong keys": [*loading["missing_keys"], *loading["unexpected_keys"]],
        "difference": largest_difference(model, folder),
        "refused": [error(auto_class, folder), error(auto_class, folder, trust_remote_code=False)],
    }
    half = auto_class.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    found["dtypes"] = sorted({str(p.dtype) for p in half.parameters()})
    mapped = auto_class.from_pretrained(folder, trust_remote_code=True, device_map="cpu", low_cpu_mem_usage=True)
    found["mapped difference"] = largest_difference(mapped, folder)
    again = folder.with_name(folder.name + "-again")
    model.save_pretrained(again)
    found["same config"] = config == json.loads((again / "config.json").read_text())
    found["same code"] = (folder / "modeling_elastic.py").read_bytes() == (again / "modeling_elastic.py").read_bytes()
    found["saved again, difference"] = largest_difference(
        auto_class.from_pretrained(again, trust_remote_code=True), folder
    )
    if model.can_generate():
        prompt = torch.load(folder / "inputs.pt")["input_ids"][:, :5]
        arguments = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
        cached = model.generate(prompt, use_cache=True, **arguments)
        found["generates alike"] = torch.equal(cached, model.generate(prompt, use_cache=False, **arguments))
        found["generated"] = cached.tolist()
    if folder.name == "llama-both":
        found["another head"] = another_head(folder, model)
    return found


def another_head(folder, model):
    """A class whose body transformers itself makes through an Auto class, as users do who train a classifier."""
    classifier, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, num_labels=3, output_loading_info=True
    )
    inputs = torch.load(folder / "inputs.pt")
    with torch.no_grad():
        same = torch.equal(classifier.model.eval()(**inputs)[0], model.model.eval()(**inputs)[0])
    return {"missing": sorted(loading["missing_keys"]), "same": same, "labels": classifier.config.num_labels}


if __name__ == "__main__":
    print(json.dumps({folder.name: look_at(folder) for folder in sorted(Path(sys.argv[1]).iterdir())}))
