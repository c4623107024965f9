"""Search-space files: what each holds, and one sentence for everything that is wrong."""

from pathlib import Path

import pytest

from bsconv_nas.errors import BsconvNasError, ExperimentError, SpaceError
from bsconv_nas.space.base import Base
from bsconv_nas.space.files import Choices, load_space_file, read_toml, validate

BASE = 'factory = "torchvision.models:resnet18"'


def write(path: Path, text: str) -> Path:
    file = path / "space.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_holds_a_base_and_choices(tmp_path: Path) -> None:
    text = f"""
    [base]
    {BASE}
    arguments = {{ width_per_group = 32 }}
    input_size = [3, 64, 48]
    num_classes = 7
    [choices]
    operators = ["bsconv_s:p=0.25,ortho=1", "bsconv_s", "bsconv_u:r=1"]
    depths = [0, 1]
    [[choices.overrides]]
    pattern = "layer4*"
    widths = [2]
    """
    file = load_space_file(write(tmp_path, text))
    assert file.base == Base("torchvision.models:resnet18", {"width_per_group": 32}, (3, 64, 48), 7)
    assert file.choices.operators == ("bsconv_s", "bsconv_u")
    assert file.choices.overrides[0].widths == (2.0,)


def test_the_choices_have_defaults(tmp_path: Path) -> None:
    file = load_space_file(write(tmp_path, f"[base]\n{BASE}"))
    assert (file.base.input_size, file.base.num_classes) == ((3, 32, 32), 10)
    assert file.choices == Choices()
    assert file.choices.operators == ("regular", "dsc", "bsconv_u", "bsconv_s")


WRONG = {
    "syntax": ("[base\n", r"must be valid TOML, but: Expected ']' .*line 1"),
    "no base": ("", r"'.*space\.toml' needs the key 'base': add it\."),
    "no factory": ("[base]", r"needs the key 'base\.factory': add it\."),
    "unknown table": (f"[base]\n{BASE}\n[choice]", r"Unknown key 'choice' in .*: valid are 'base', 'choices'; did you"),
    "unknown key": (f"[base]\n{BASE}\nclasses = 3", r"Unknown key 'base\.classes' in .*; did you mean 'num_classes'"),
    "typo of a needed key": ('[base]\nfactroy = "a:b"', r"Unknown key 'base\.factroy' in .*; did you mean 'factory'"),
    "unknown choice": (
        f"[base]\n{BASE}\n[choices]\noperator = []",
        r"Unknown key 'choices\.operator'.*mean 'operators'",
    ),
    "unknown override key": (
        f'[base]\n{BASE}\n[[choices.overrides]]\npattern = "*"\nwidth = [1]',
        r"Unknown key 'choices\.overrides\.0\.width' .*: valid are 'blocks', 'depths', .*; did you mean 'widths'",
    ),
    "factory": (
        '[base]\nfactory = "resnet18"',
        r"In .*: base\.factory must be package\.module:function, but got 'resnet18'",
    ),
    "size": (f"[base]\n{BASE}\ninput_size = [3, 32]", r"Key 'base\.input_size\.2' in .*: it needs one more value"),
    "no pixels": (
        f"[base]\n{BASE}\ninput_size = [3, 0, 8]",
        r"base\.input_size must be \(channels, height, width\), each",
    ),
    "one class": (
        f"[base]\n{BASE}\nnum_classes = 1",
        r"base\.num_classes must be a whole number .*, but got 1\.",
    ),
    "a flag for a size": (
        f"[base]\n{BASE}\ninput_size = [true, 16, 16]",
        r"base\.input_size must be \(channels, height, width\), each .*, but got \[True, 16, 16\]\.",
    ),
    "a text for a size": (f'[base]\n{BASE}\ninput_size = [3, "8", 8]', r"base\.input_size must .* got \[3, '8', 8\]"),
    "a flag for classes": (f"[base]\n{BASE}\nnum_classes = true", r"base\.num_classes must be a whole .* got True\."),
    "a flag for a divisor": (f"[base]\n{BASE}\n[choices]\ndivisor = true", r"'choices\.divisor' .*a whole number, but"),
    "a flag for a kernel": (f"[base]\n{BASE}\n[choices]\nkernels = [true]", r"'choices\.kernels\.0' .*a whole number"),
    "a flag for a width": (f"[base]\n{BASE}\n[choices]\nwidths = [true]", r"'choices\.widths\.0' .*be a number, but"),
    "a text for a ratio": (f'[base]\n{BASE}\n[choices]\nexpansions = ["2"]', r"'choices\.expansions\.0' .* a number"),
    "a number for a flag": (f"[base]\n{BASE}\n[choices]\nstem = 1", r"'choices\.stem' .*true or false, but got 1\."),
    "a date": (f"[base]\n{BASE}\narguments = {{ day = 2020-01-01 }}", r"base\.arguments must be plain values"),
    "text for a number": (
        f'[base]\n{BASE}\nnum_classes = "ten"',
        r"Key 'base\.num_classes' .*it must be a whole number, but got 'ten'",
    ),
    "unknown operator": (
        f'[base]\n{BASE}\n[choices]\noperators = ["bsconv"]',
        r"Key 'choices\.operators' .*: Unknown decomposition 'bsconv' .*did you mean 'bsconv_",
    ),
    "operator's parameter": (
        f'[base]\n{BASE}\n[choices]\noperators = ["bsconv_s:p=2"]',
        r"Parameter 'p' of 'bsconv_s:p=2' must be a fraction in \(0, 1\]",
    ),
    "no operators": (f"[base]\n{BASE}\n[choices]\noperators = []", r"Key 'choices\.operators' .*it must not be empty"),
    "widths of zero": (f"[base]\n{BASE}\n[choices]\nwidths = [0]", r"multipliers must lie in \(0, 16\], but got \[0\]"),
    "negative widths": (f"[base]\n{BASE}\n[choices]\nwidths = [1, -1]", r"must lie in \(0, 16\], but got \[1, -1\]"),
    "widths that are no number": (f"[base]\n{BASE}\n[choices]\nwidths = [nan]", r"must lie in \(0, 16\]"),
    "no widths": (f"[base]\n{BASE}\n[choices]\nwidths = []", r"Key 'choices\.widths' .*it must not be empty"),
    "divisor": (
        f"[base]\n{BASE}\n[choices]\ndivisor = 0",
        r"Key 'choices\.divisor' .*it must be at least 1, but got 0",
    ),
    "scope": (
        f'[base]\n{BASE}\n[choices]\nscope = "net"',
        r"Key 'choices\.scope' .*'network', 'stage', 'block' or 'layer'",
    ),
    "depths' name": (
        f'[base]\n{BASE}\n[choices]\ndepths = "some"',
        r"Key 'choices\.depths' in .*: depths must be a list of whole numbers .*, 'all' or 'fixed', but got 'some'",
    ),
    "depths": (f"[base]\n{BASE}\n[choices]\ndepths = [1, -1]", r"depths must be a list .* but got \[1, -1\]"),
    "fractions of depth": (f"[base]\n{BASE}\n[choices]\ndepths = [0.5]", r"depths must be a list .* but got \[0\.5\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_gets_one_sentence(tmp_path: Path, case: str) -> None:
    text, sentence = WRONG[case]
    with pytest.raises(SpaceError, match=sentence) as refused:
        load_space_file(write(tmp_path, text))
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")
    assert "space.toml" in str(refused.value)


@pytest.mark.parametrize("error", [SpaceError, ExperimentError])
def test_a_file_that_cannot_be_read_is_the_callers_error(tmp_path: Path, error: type[BsconvNasError]) -> None:
    with pytest.raises(error, match=r"No file '.*absent\.toml': check the path"):
        read_toml(tmp_path / "absent.toml", error)
    with pytest.raises(error, match=r"must be a readable UTF-8 text file, but: .*directory"):
        read_toml(tmp_path, error)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(error, match="must be a readable UTF-8 text file, but: "):
        read_toml(tmp_path / "binary.toml", error)


def test_values_that_come_from_code_are_checked_alike() -> None:
    with pytest.raises(SpaceError, match=r"Unknown key 'opperators' in 'from_module': .*did you mean 'operators'"):
        validate(Choices, {"opperators": ["dsc"]}, "from_module", SpaceError)
    with pytest.raises(SpaceError, match=r"base\.factory must be package\.module:function, but got 'a b:c'"):
        Base("a b:c")
