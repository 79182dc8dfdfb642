// node compile.mjs FOLDER...: compiles the folders' Python files with CPython 3.14; prints its version, their number and their faults.
import { loadPyodide } from "pyodide";

const python = await loadPyodide();
process.argv.slice(2).forEach((root, index) => {
  python.FS.mkdirTree(`/source/${index}`);
  python.FS.mount(python.FS.filesystems.NODEFS, { root }, `/source/${index}`);
});
console.log(
  python.runPython(`
import pathlib, platform, warnings

warnings.simplefilter("error")
lines = []
paths = sorted(pathlib.Path("/source").rglob("*.py"))
for path in paths:
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, Warning) as error:
        lines.append(f"{path}: {error!r}")
"\\n".join([platform.python_version(), str(len(paths)), *lines])
`),
);
