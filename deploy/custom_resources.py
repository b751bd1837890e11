"""Schemas of the custom resources that the manifests use, and a check against those that a cluster has.

Each schema states the fields that we set, in our words, with the types and bounds of the definition it names; a
field that it does not know is refused, as a cluster would drop it without a word. A cluster's own definitions are
held to the same standard by

    kubectl get crd -o yaml | python -m deploy.custom_resources

which renders every overlay and component, and ends with status 1 where a definition is missing or refuses something.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import jsonschema
import yaml

from deploy.manifests import KUBERNETES, Manifest, identify, render, render_combination

Schema: TypeAlias = dict[str, Any]
Schemas: TypeAlias = Mapping[tuple[str, str], Schema]
"""By apiVersion and kind."""

_BUILT_IN: Final = ("apps", "policy", "autoscaling", "networking.k8s.io", "rbac.authorization.k8s.io")
_OVERLAYS: Final = ("cpu-demo", "gpu")


def is_custom(manifest: Manifest) -> bool:
    """Whether an object's kind is not Kubernetes' own."""
    group, slash, _ = manifest["apiVersion"].rpartition("/")
    return bool(slash) and group not in _BUILT_IN


def complaints(manifest: Manifest, schemas: Schemas) -> Iterator[str]:
    """What a schema says against an object. Raises LookupError where none is known."""
    validator = jsonschema.Draft202012Validator(schemas[manifest["apiVersion"], manifest["kind"]])
    for error in validator.iter_errors(manifest):
        yield f"{identify(manifest)}: {'.'.join(str(part) for part in error.absolute_path)}: {error.message}"


def own_schemas() -> Schemas:
    """The schemas of the fields that we use."""
    entries = yaml.safe_load((KUBERNETES / "custom-resources.yaml").read_text(encoding="utf-8"))
    return {(entry["apiVersion"], entry["kind"]): _whole(entry) for entry in entries}


def schemas_of_definitions(definitions: list[Manifest]) -> Schemas:
    """The schemas in CustomResourceDefinitions, made strict: a field that would be dropped is an error."""
    return {
        (f"{one['spec']['group']}/{version['name']}", one["spec"]["names"]["kind"]): _strict(
            version["schema"]["openAPIV3Schema"]
        )
        for one in definitions
        for version in one["spec"]["versions"]
    }


def rendered() -> Iterator[tuple[str, list[Manifest]]]:
    """Every overlay, and every component on each plain overlay, by a name for it."""
    for overlay in sorted(path.name for path in (KUBERNETES / "overlays").iterdir()):
        yield overlay, render(KUBERNETES / "overlays" / overlay)
    for overlay in _OVERLAYS:
        for component in sorted(path.name for path in (KUBERNETES / "components").iterdir()):
            with tempfile.TemporaryDirectory() as folder:
                combination = render_combination(Path(folder), overlay=overlay, components=[component])
            yield f"{overlay}+{component}", combination


def main() -> None:
    """Hold everything that is rendered to the definitions on standard input."""
    documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
    definitions = [one for document in documents for one in document.get("items", [document])]
    schemas = schemas_of_definitions(definitions)
    found: set[str] = set()
    for _, manifests in rendered():
        for manifest in filter(is_custom, manifests):
            try:
                found |= set(complaints(manifest, schemas))
            except LookupError:
                found.add(f"{identify(manifest)}: no definition of {manifest['apiVersion']} {manifest['kind']}")
    sys.stdout.write(
        "".join(f"{complaint}\n" for complaint in sorted(found)) or "all custom resources are as defined\n"
    )
    sys.exit(bool(found))


def _whole(entry: Mapping[str, Any]) -> Schema:
    return _strict(
        {
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {"const": entry["apiVersion"]},
                "kind": {"const": entry["kind"]},
                "metadata": {"type": "object"},
                "spec": entry["spec"],
            },
        }
    )


def _strict(schema: Schema) -> Schema:
    """Refuse unknown fields wherever known ones are listed, and read Kubernetes' own words."""
    made = dict(schema)
    if "properties" in made:
        made["properties"] = {name: _strict(value) for name, value in made["properties"].items()}
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for word in ("items", "additionalProperties"):
        if isinstance(made.get(word), dict):
            made[word] = _strict(made[word])
    # Go's patterns may switch to ignoring case in the middle, Python's may not; nothing that we set needs it.
    if "(?i)" in made.get("pattern", ""):
        del made["pattern"]
    return made


if __name__ == "__main__":
    main()
