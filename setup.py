"""Everything is said in pyproject.toml, but for one thing: a wheel carries the Julia package inside the Python one."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithJulia(build_py):
    """Copies ``julia/`` to ``pydiffeqflux/_julia`` (an editable install uses it where it is)."""

    def run(self):
        super().run()
        if not self.editable_mode:
            into = Path(self.build_lib) / "pydiffeqflux" / "_julia"
            shutil.copytree("julia", into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("Manifest.toml", "test"))


setup(cmdclass={"build_py": WithJulia})
