"""The restore that docs/operating/postgres.md tells of, put into production's overlay as it stands there."""

import os
import re
import textwrap

from deploy_manifests import FOLDER, REPOSITORY, complaints, of_kind, rendered


def test_the_restore_of_the_runbook_is_a_cluster_that_the_operator_takes(tmp_path):
    page = (REPOSITORY / "docs" / "operating" / "postgres.md").read_text()
    (patch,) = re.findall(r"^ *```yaml\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    root = os.path.relpath(FOLDER, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{root}/postgres/overlays/production]\npatches:\n" + textwrap.dedent(patch)
    )
    before = {c["metadata"]["name"]: c["spec"] for c in of_kind(rendered("postgres/overlays/production"), "Cluster")}
    manifests = rendered(str(tmp_path))
    assert complaints(manifests) == []
    after = {cluster["metadata"]["name"]: cluster["spec"] for cluster in of_kind(manifests, "Cluster")}
    (changed,) = (name for name in after if after[name] != before[name])
    restored, made = after[changed], before[changed]
    # The same database and owner, so that the Secret of its name fits; from where the lost one put its backups.
    recovery, initdb = restored["bootstrap"]["recovery"], made["bootstrap"]["initdb"]
    assert (recovery["database"], recovery["owner"]) == (initdb["database"], initdb["owner"])
    (source,) = (c["plugin"] for c in restored["externalClusters"] if c["name"] == recovery["source"])
    (archives,), (archived,) = restored["plugins"], made["plugins"]
    assert source["name"] == archives["name"] == archived["name"]
    assert source["parameters"] == {**archived["parameters"], "serverName": changed}
    # Two databases' logs in one folder are good for neither.
    assert archives["parameters"]["serverName"] != source["parameters"]["serverName"]


def test_every_database_has_a_base_backup_from_the_first_hour():
    manifests = rendered("postgres/overlays/production")
    backups = {backup["spec"]["cluster"]["name"]: backup["spec"] for backup in of_kind(manifests, "ScheduledBackup")}
    assert set(backups) == {cluster["metadata"]["name"] for cluster in of_kind(manifests, "Cluster")}
    assert all(backup["immediate"] is True for backup in backups.values())
