"""What the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from elastic.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def test_every_package_is_in_the_wheel():
    listed = set(re.findall(r'^    "(elastic[.\w]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "elastic").rglob("__init__.py")
        if "export" not in path.parts
    }
    found |= {"elastic." + ".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "export").rglob("__init__.py")}
    assert found <= listed


def test_the_export_folder_has_one_name():
    assert (ROOT / "elastic" / "export").is_symlink()
    refused = subprocess.run(
        [sys.executable, "-c", "import export"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "import this package as `elastic.export`" in refused.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_commands_and_options_in_the_readme_exist():
    commands = get_command(app).commands
    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"^elastic .*$", text, re.MULTILINE):
        for call in line.split("#")[0].split("&&"):
            _, name, *words = call.split()
            options = {option for parameter in commands[name].params for option in parameter.opts}
            assert {word for word in words if word.startswith("-")} <= options, call
    for recipe in re.findall(r"recipes/\w+\.yaml", text):
        assert (ROOT / recipe).is_file()


def test_python_in_the_readme_names_what_exists():
    import elastic

    for name in re.findall(r"elastic\.([A-Za-z_]+)\(", (ROOT / "README.md").read_text()):
        assert name in elastic.__all__, name


def test_no_placeholders_are_left():
    for page in PAGES:
        assert "@@" not in (ROOT / page).read_text()
