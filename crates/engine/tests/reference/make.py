"""Regenerate every fixture of this folder's README that needs no outside model. Usage: python3 make.py"""
import pathlib
import check_models, make_formats, make_models

here = pathlib.Path(__file__).resolve().parent
crates = here.parents[2]
check_models.main(crates.parent / "models")
make_formats.main(crates / "kernels/tests/fixtures")
make_models.main(here.parent / "golden", [])
