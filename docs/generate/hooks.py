"""What MkDocs calls: it takes the generated pages as if they lay in docs/."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PAGES = Path(__file__).with_name("pages.py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    spec = importlib.util.spec_from_file_location("docs_pages", _PAGES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.pages().items():
        files.append(File.generated(config, path, content=text))
    return files
