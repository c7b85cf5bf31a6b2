"""A gem a platform: the extension and the few lines that load it."""

import os
import shutil
import subprocess
import tempfile

import meta

SOURCE = os.path.join(meta.HERE, "gem")
SPEC = """Gem::Specification.new do |s|
  s.name = "walrust"
  s.version = {version!r}
  s.platform = {platform!r}
  s.summary = {summary!r}
  s.license = {license!r}
  s.authors = ["The walrust developers"]
  s.required_ruby_version = ">= 2.7"
  s.files = Dir["lib/**/*"] + ["LICENSE"]
  s.metadata["rubygems_mfa_required"] = "true"
end
"""


def build(target):
    with tempfile.TemporaryDirectory(prefix="walrust-gem-") as folder:
        shutil.copytree(os.path.join(SOURCE, "lib"), os.path.join(folder, "lib"))
        shutil.copy(target.so, os.path.join(folder, "lib/walrust/walrust.so"))
        shutil.copy(os.path.join(meta.ROOT, "LICENSE"), folder)
        with open(os.path.join(folder, "lib/walrust/VERSION"), "w") as f:
            f.write(meta.VERSION + "\n")
        with open(os.path.join(folder, "walrust.gemspec"), "w") as f:
            f.write(SPEC.format(version=meta.VERSION, platform=target.ruby, summary=meta.SUMMARY, license=meta.LICENSE))
        path = os.path.join(meta.OUT, f"walrust-{meta.VERSION}-{target.ruby}.gem")
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(meta.epoch())}
        done = subprocess.run(
            ["gem", "build", "--silent", "--output", path, "walrust.gemspec"], cwd=folder, env=env, text=True, capture_output=True
        )
        if done.returncode:
            raise SystemExit(f"packages: gem build: {done.stderr}")
        return [path]
