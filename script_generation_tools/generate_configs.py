"""Fill the templates of experiment_template_config/ with the values of values.toml: one JSON config per combination.

    cd script_generation_tools && python generate_configs.py && python generate_scripts.py

A template is a config with `$variable$` placeholders. Without quotes a placeholder becomes a JSON value, inside a
string it becomes text. experiment_template_config/README.md describes both files.
"""

import argparse
import difflib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.paths import PACKAGE, REPOSITORY_ROOT, command, working_folder
from utils.words import say


def _continue_in_project_environment(error: ModuleNotFoundError) -> None:
    """Start again with the Python of .venv, so that `python generate_configs.py` works without activating it."""
    python = REPOSITORY_ROOT / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == python.parent.parent:
        advice = (
            f"{sys.executable} -m pip install {PACKAGE[:-1]}" if PACKAGE else f"bash {REPOSITORY_ROOT / 'install.sh'}"
        )
        sys.exit(f'{sys.executable} lacks "{error.name}". Run: {advice}')
    os.execv(python, [str(python), *sys.argv])


try:
    from script_generation_tools.generated_files import Outcome, update_folder
    from utils.config import ExperimentConfig, check_config
    from utils.errors import ConfigError, prints_user_errors
    from utils.files.reading import parse_json, parse_toml, read_text, why_unreadable
    from utils.registry import load_plugins
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    _continue_in_project_environment(missing)

PLACEHOLDER = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)\$")
STRING_OR_PLACEHOLDER = re.compile(r'"(?:[^"\\]|\\.)*"|' + PLACEHOLDER.pattern)
FILE_STEM = re.compile(r"[A-Za-z0-9_+=,()\-][A-Za-z0-9_+=,.()\-]{0,190}")
VALUES_FILE = "values.toml"
DEFAULTS = "defaults"
NAME = "experiment_name"
SETTINGS = "settings"
LIKE = "like"
PLUGIN = "plugin"


class Candidate(NamedTuple):
    """A filled template: the file's name without .json, its text, and what it and its name were filled with."""

    stem: str
    experiment_name: str
    text: str
    template: str
    combination: dict[str, Any]
    name_values: dict[str, Any]
    section_pattern: str
    plugins: tuple[Path, ...] = ()
    """Files that register what the config names; its script gives them with --plugin."""


def generate_configs(template_folder: Path, config_folder: Path, *, prune: bool = False) -> Outcome:
    """Write the configs of all templates; nothing is written when anything is wrong.

    Raises:
        ConfigError: everything that is wrong with the templates and values, in one message.
    """
    texts, notes = expand_templates(template_folder)
    outcome = update_folder(
        config_folder, {f"{stem}.json": text for stem, text in texts.items()}, prune=prune, notes=notes
    )
    outcome.notes.extend(_shared_run_folders(config_folder))
    return outcome


def expand_templates(template_folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return name -> text of every config that the templates give, and notes for the user.

    Raises:
        ConfigError: a variable without values, a template that is no valid config, two configs with one name, ...
    """
    candidates, notes = _expand(template_folder)
    return {candidate.stem: candidate.text for candidate in candidates}, notes


def plugins_of_configs(template_folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return name of a config -> the files that `plugin` names in its section of the values file."""
    return {candidate.stem: candidate.plugins for candidate in _expand(template_folder)[0] if candidate.plugins}


def _expand(template_folder: Path) -> tuple[list[Candidate], list[str]]:
    all_values = _read_values(template_folder / VALUES_FILE)
    templates = sorted(template_folder.glob("[!.]*.json"))
    problems: list[str] = []
    notes = [
        f'{VALUES_FILE}: there is no template {section}.json for the values in ["{section}"]'
        for section in all_values
        if section != DEFAULTS and section not in {path.stem for path in templates}
    ]
    candidates: list[Candidate] = []
    defaults = all_values.get(DEFAULTS, {})
    for path in templates:
        try:
            values = _with_inherited(all_values, path.stem)
            plugins = _load_plugins(values.get(PLUGIN, []), template_folder)
            candidates += [each._replace(plugins=plugins) for each in expand_template(path, values, defaults)]
        except ConfigError as error:
            problems.append(str(error))
            continue
        variables = variables_of(_template_text(path))
        unused = sorted(_declared(all_values.get(path.stem, {})) - variables - {NAME})
        if unused:
            its, s = ("its", "") if len(unused) == 1 else ("their", "s")
            notes.append(
                f"{VALUES_FILE}: {path.name} does not use ${'$, $'.join(unused)}$: {its} values have no effect; take "
                f'them out of ["{path.stem}"], or write the variable{s} into the template'
            )
        used = {name: defaults[name] for name in sorted(variables - _declared(values) - {NAME}) if name in defaults}
        if used:
            notes.append(_defaults_note(path, used, all_values, templates))
    problems += _name_problems(candidates)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return candidates, notes


def _load_plugins(given: Any, template_folder: Path) -> tuple[Path, ...]:
    """Execute the files that a section names, relative to the values file: a config that needs them can be checked."""
    names = given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{VALUES_FILE}: {PLUGIN} is {given!r}, but must be the path of a Python file, or a list")
    paths = tuple(template_folder / name for name in names)
    if paths:
        load_plugins({"plugin": [str(path) for path in paths]})
    return paths


def expand_template(path: Path, own_values: Mapping[str, Any], default_values: Mapping[str, Any]) -> list[Candidate]:
    """Fill one template with every combination of the values of the variables it uses, each combination once."""
    template = _template_text(path)
    variables = sorted(variables_of(template) - {NAME})
    combinations: list[dict[str, Any]] = []
    patterns: list[str] = []
    for row in own_values.get(SETTINGS, [{}]):
        given = {**default_values, **own_values, **row}
        lacking = [variable for variable in variables if given.get(variable, []) == []]
        if lacking:
            raise ConfigError(
                "\n".join(
                    f"{path.name}: variable ${variable}$ has no values. Add a line like  {variable} = [...]  under "
                    f'["{path.stem}"] in {path.parent.name}/{VALUES_FILE}, or write a constant into the template'
                    for variable in lacking
                )
            )
        choices = (given[name] if isinstance(given[name], list) else [given[name]] for name in variables)
        for chosen in itertools.product(*choices):
            combination = dict(zip(variables, chosen, strict=True))
            if combination not in combinations:
                combinations.append(combination)
                patterns.append(str(given.get(NAME, "$template$")))
    section_pattern = str({**default_values, **own_values}.get(NAME, "$template$"))
    return [
        _fill(path, template, combination, pattern, section_pattern)
        for combination, pattern in zip(combinations, patterns, strict=True)
    ]


def first_config(template: Path, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Fill one template with the chosen values of its variables, and the first of those in the values file for the
    others.

    Raises:
        ConfigError: the template or its values cannot be used.
    """
    if not template.is_file():
        raise ConfigError(f"{template}: there is no such template")
    all_values = _read_values(template.parent / VALUES_FILE)
    values = _with_inherited(all_values, template.stem) | dict(chosen)
    first = {
        name: value[:1] if isinstance(value, list) and name != SETTINGS else value for name, value in values.items()
    }
    first |= {SETTINGS: values[SETTINGS][:1]} if SETTINGS in values else {}
    return parse_json(expand_template(template, first, all_values.get(DEFAULTS, {}))[0].text)


def variables_of(template: str) -> set[str]:
    """Return the names of the variables in the text of a template."""
    return set(PLACEHOLDER.findall(template))


def _template_text(template: Path) -> str:
    try:
        return read_text(template)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{template}: {why_unreadable(error)}") from error


def substitute(template: str, values: Mapping[str, Any]) -> str:
    """Replace the placeholders of a JSON text: by JSON values where they stand alone, by text inside a string."""

    def replace(match: re.Match[str]) -> str:
        if match[0].startswith('"'):
            return PLACEHOLDER.sub(
                lambda inner: json.dumps(as_text(values[inner[1]]), ensure_ascii=False)[1:-1], match[0]
            )
        return json.dumps(values[match[1]], ensure_ascii=False)

    return STRING_OR_PLACEHOLDER.sub(replace, template)


def as_text(value: Any) -> str:
    """Write a value as it reads inside a name: true, 0.01, 20; lists joined by a dash."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "-".join(as_text(item) for item in value)
    return json.dumps(value)


def _fill(path: Path, template: str, combination: dict[str, Any], pattern: str, section_pattern: str) -> Candidate:
    values = {NAME: "unnamed"} | combination
    config, checked = _checked(path, substitute(template, values))
    if NAME in variables_of(template):
        del config[NAME]  # it is what the pattern is about to make
    name_values = {**checked.to_json_dict(), **combination, **config, "template": path.stem}
    if NAME not in config:
        del name_values[NAME]
    stem = _compose_name(path, pattern, name_values)
    text = substitute(template, values | {NAME: stem})
    _, checked = _checked(path, text)
    text = text.rstrip() + "\n"
    return Candidate(stem, checked.experiment_name, text, path.name, combination, name_values, section_pattern)


def _compose_name(path: Path, pattern: str, known: Mapping[str, Any]) -> str:
    """Fill the pattern of a name with the config's own keys, so that a name shows what is in the file."""
    for key in PLACEHOLDER.findall(pattern):
        if key not in known:
            raise ConfigError(
                f'{path.name}: ${key}$ in the experiment_name "{pattern}" of {VALUES_FILE} is neither a config '
                "key nor a variable of the template"
            )
    stem = _fill_pattern(pattern, known)
    if not FILE_STEM.fullmatch(stem):
        made_of = f"the experiment_name in {VALUES_FILE}"
        if path.stem in stem and not FILE_STEM.fullmatch(path.stem):
            made_of = "the template's own file name, which is to be changed"
        raise ConfigError(
            f'{path.name}: "{stem}", made from {made_of}, cannot be a file name here; use letters, digits and '
            "_ + = , . ( ) -"
        )
    return stem


def _fill_pattern(pattern: str, known: Mapping[str, Any]) -> str:
    return PLACEHOLDER.sub(lambda match: as_text(known.get(match[1], "")), pattern)


def _checked(path: Path, text: str) -> tuple[dict[str, Any], ExperimentConfig]:
    try:
        config = parse_json(text)
    except ValueError as error:
        place = error.__cause__
        if not isinstance(place, json.JSONDecodeError):
            raise ConfigError(f"{path.name}: {error}") from error
        # Filling in adds no lines, so that the parser's line is the template's; a forgotten comma is in the one before.
        lines = list(enumerate(_template_text(path).split("\n"), start=1))
        shown = "".join(f"\n  line {number}: {line}" for number, line in lines[max(place.lineno - 2, 0) : place.lineno])
        raise ConfigError(
            f"{path.name}: not valid JSON once its variables are filled in ({place.msg}, line {place.lineno}){shown}"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path.name}: a config is one JSON object, not a {type(config).__name__}")
    return config, check_config(config, path.name)


def _declared(own_values: Mapping[str, Any]) -> set[str]:
    of_rows = {variable for row in own_values.get(SETTINGS, []) for variable in row}
    return {*own_values, *of_rows} - {SETTINGS, LIKE, PLUGIN}


def _with_inherited(
    all_values: Mapping[str, dict[str, Any]], section: str, via: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a section's values over those of the section named by its `like`; own keys win over inherited settings."""
    own = {key: value for key, value in all_values.get(section, {}).items() if key != LIKE}
    if LIKE not in all_values.get(section, {}):
        return own
    other = all_values[section][LIKE]
    if other in (*via, section):
        raise ConfigError(f'{VALUES_FILE}: like = "{other}" under ["{section}"] leads back to itself')
    if not isinstance(other, str) or other not in all_values:
        near = difflib.get_close_matches(str(other), all_values, n=1)
        meant = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(all_values)}"
        raise ConfigError(f'{VALUES_FILE}: like = "{other}" under ["{section}"] names no section of this file; {meant}')
    inherited = _with_inherited(all_values, other, (*via, section))
    if SETTINGS in inherited:
        inherited[SETTINGS] = [
            {key: value for key, value in row.items() if key not in own} for row in inherited[SETTINGS]
        ]
    return inherited | own


def _defaults_note(
    path: Path, used: Mapping[str, Any], all_values: Mapping[str, dict[str, Any]], templates: list[Path]
) -> str:
    """Name the values that came from [defaults], and the lines that give those of the most similar template instead."""
    listed = ", ".join(f"{name} = {json.dumps(value)}" for name, value in used.items())
    lines = set(_template_text(path).splitlines())
    common = {
        other.stem: len(lines & set(_template_text(other).splitlines()))
        for other in templates
        if other != path and LIKE not in all_values.get(other.stem, {LIKE: ""})
    }
    nearest = max(common, key=lambda name: common[name], default="...")
    lacks = "has no section" if path.stem not in all_values else "does not find all its variables in its section"
    return (
        f"{path.name} {lacks} in {VALUES_FILE}: [{DEFAULTS}] used: {listed}; for those of the template you copied "
        f'add:\n  ["{path.stem}"]\n  {LIKE} = "{nearest}"'
    )


def _read_values(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = parse_toml(read_text(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: {why_unreadable(error)}; it holds the values of the templates' variables"
        ) from error
    for section, content in values.items():
        rows = content.get(SETTINGS, [{}]) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(
                f'{path.name}: "{section}" must be a section ["{section}"] of values, and its {SETTINGS}, if any, a '
                "list of tables like { samples_per_class = 1, batch_size = 4 }"
            )
    return values


def _name_problems(candidates: list[Candidate]) -> Iterator[str]:
    """Yield what breaks the rule that two configs share neither a file nor a run folder (letter case does not
    distinguish folders everywhere).

    One message for each template, or pair of templates, however many of its configs share names.
    """
    reported: set[tuple[str, str]] = set()
    for field in ("stem", "experiment_name"):
        first: dict[str, Candidate] = {}
        for candidate in candidates:
            name = getattr(candidate, field)
            other = first.setdefault(name.casefold(), candidate)
            if other is candidate or (candidate.template, other.template) in reported:
                continue
            reported.add((candidate.template, other.template))
            if other.template != candidate.template:
                yield (
                    f'{candidate.template} and {other.template}: two configs end in the name "{name}". '
                    f"Give one of them another experiment_name"
                )
                continue
            differing = [
                f"${variable}$ ({as_text(other.combination.get(variable))} and {as_text(value)})"
                for variable, value in candidate.combination.items()
                if other.combination.get(variable) != value
            ]
            section = Path(candidate.template).stem
            if field == "experiment_name":
                where = "the template's experiment_name, or have the file's name there:"
                line = f'"{NAME}": "${NAME}$",'
            else:
                where = f'the only experiment_name under ["{section}"] in {VALUES_FILE}:'
                line = f'{NAME} = "{_distinct_pattern([c for c in candidates if c.template == candidate.template])}"'
            yield (
                f'{candidate.template}: two configs end in the name "{name}". They differ in {", ".join(differing)}: '
                f"put that into {where}\n  {line}"
            )


def _distinct_pattern(candidates: list[Candidate]) -> str:
    """Extend the experiment_name of a template's section by the variables in which its configs differ."""
    pattern = candidates[0].section_pattern

    def names(pattern: str) -> int:
        return len({_fill_pattern(pattern, candidate.name_values).casefold() for candidate in candidates})

    for variable in candidates[0].combination:
        longer = f"{pattern}_{variable}${variable}$"
        if names(longer) > names(pattern):
            pattern = longer
    return pattern


def _shared_run_folders(config_folder: Path) -> list[str]:
    """Return notes on hand-written configs whose experiment_name, and hence run folder, is another config's too."""
    owners: dict[str, str] = {}
    notes = []
    for path in sorted(config_folder.glob("[!.]*.json")):
        try:
            name = parse_json(read_text(path))[NAME]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a file that is no config says so when it is run
        if owners.setdefault(name, path.name) != path.name:
            notes.append(
                f'{config_folder.name}/{path.name}: its experiment_name "{name}" is also that of {owners[name]}, so '
                "both would use one run folder. Give one of them another"
            )
    return notes


@prints_user_errors
def main(arguments: list[str] | None = None) -> int:
    """Generate the configs of this checkout; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Fill the templates of experiment_template_config/ into experiment_config/."
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove outdated generated configs that nobody edited; their scripts go by generate_scripts --prune",
    )
    options = parser.parse_args(arguments)
    folder = working_folder()
    config_folder = folder / "experiment_config"
    outcome = generate_configs(folder / "experiment_template_config", config_folder, prune=options.prune)
    say(outcome.report(config_folder))
    if outcome.removed:
        say(f"their scripts stay until: {command('generate_scripts')} --prune")
    return 0


if __name__ == "__main__":
    sys.exit(main())
