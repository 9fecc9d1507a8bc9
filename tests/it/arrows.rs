//! Who may import whom: the table of `docs/ARCHITECTURE.md`, checked against `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::process::Command;

use ballast_tests::repository;
use serde_json::Value;

/// What a package of ours may import of ours, and what it must not name in its manifest at all.
struct Rule {
    package: &'static str,
    may_import: &'static [&'static str],
    never_directly: &'static [&'static str],
}

const ALL: &[&str] = &[
    "ballast",
    "ballast-collective",
    "ballast-common",
    "ballast-coordinator",
    "ballast-cuda",
    "ballast-kernels",
    "ballast-model",
    "ballast-proto",
    "ballast-worker",
];

/// Every package of the workspace. A new package, or a new arrow, is a design change: it is made here, in
/// `docs/ARCHITECTURE.md`, and with its reason in the commit.
const RULES: &[Rule] = &[
    Rule { package: "ballast-collective", may_import: &[], never_directly: &["burn", "prost", "tonic"] },
    Rule { package: "ballast-common", may_import: &[], never_directly: &["burn", "prost", "tonic"] },
    Rule { package: "ballast-cuda", may_import: &["ballast-collective"], never_directly: &["burn", "prost", "tonic"] },
    Rule { package: "ballast-kernels", may_import: &[], never_directly: &["burn", "prost", "tonic"] },
    Rule {
        package: "ballast-model",
        may_import: &["ballast-common", "ballast-kernels"],
        never_directly: &["prost", "tokio", "tonic"],
    },
    Rule { package: "ballast-proto", may_import: &["ballast-common"], never_directly: &["burn"] },
    Rule {
        package: "ballast-coordinator",
        may_import: &["ballast-common", "ballast-proto"],
        never_directly: &["burn"],
    },
    Rule {
        package: "ballast-worker",
        may_import: &["ballast-collective", "ballast-common", "ballast-cuda", "ballast-model", "ballast-proto"],
        never_directly: &["rusqlite"],
    },
    Rule {
        package: "ballast",
        may_import: &[
            "ballast-common",
            "ballast-coordinator",
            "ballast-cuda",
            "ballast-model",
            "ballast-proto",
            "ballast-worker",
        ],
        never_directly: &[],
    },
    Rule { package: "ballast-tests", may_import: ALL, never_directly: &[] },
    Rule { package: "ballast-benches", may_import: ALL, never_directly: &[] },
    Rule { package: "ballast-examples", may_import: ALL, never_directly: &[] },
];

#[test]
fn packages_import_only_what_the_table_allows() {
    let workspace = Workspace::read();
    let mut violations = Vec::new();
    for rule in RULES {
        for dependency in workspace.direct(rule.package) {
            let ours = workspace.members.contains(dependency);
            if ours && !rule.may_import.contains(&dependency.as_str()) {
                violations.push(format!("{} must not import {dependency}", rule.package));
            }
            if rule.never_directly.contains(&dependency.as_str()) {
                violations.push(format!("{} must not name {dependency} in its manifest", rule.package));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn the_table_names_every_package_once() {
    let mut named: Vec<&str> = RULES.iter().map(|rule| rule.package).collect();
    named.sort_unstable();
    let members = Workspace::read().members;
    assert_eq!(named, members.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The coordinator is to be built and run on a machine without the GPU stack.
#[test]
fn burn_does_not_reach_the_coordinator() {
    let workspace = Workspace::read();
    for package in ["ballast-common", "ballast-proto", "ballast-coordinator"] {
        let reached = workspace.reachable(package);
        let heavy: Vec<_> =
            reached.iter().filter(|name| ["burn", "cubecl"].iter().any(|root| name.starts_with(root))).collect();
        assert!(heavy.is_empty(), "{package} reaches {heavy:?}");
    }
    let worker = workspace.reachable("ballast-worker");
    assert!(worker.contains("burn"), "the test looks at nothing: even the worker does not reach burn");
}

/// The packages that the workspace's lock file resolves to for this host.
struct Workspace {
    members: BTreeSet<String>,
    /// Package id to name.
    names: BTreeMap<String, String>,
    /// Package id to the ids that it is built with, development dependencies included.
    dependencies: BTreeMap<String, Vec<Dependency>>,
}

struct Dependency {
    id: String,
    only_for_development: bool,
}

impl Workspace {
    /// Reads `cargo metadata`, which takes nothing from the network: what it names was fetched to build this test.
    fn read() -> Self {
        let metadata = cargo_metadata();
        let list = |value: &Value| value.as_array().expect("a list").clone();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let names: BTreeMap<_, _> =
            list(&metadata["packages"]).iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
        let dependency = |dep: &Value| Dependency {
            id: text(&dep["pkg"]),
            only_for_development: list(&dep["dep_kinds"]).iter().all(|kind| kind["kind"] == "dev"),
        };
        let dependencies = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| (text(&node["id"]), list(&node["deps"]).iter().map(dependency).collect()))
            .collect();
        let members = list(&metadata["workspace_members"]).iter().map(|id| names[&text(id)].clone()).collect();
        Self { members, names, dependencies }
    }

    /// Names what `package` imports itself, for its tests too.
    fn direct(&self, package: &str) -> BTreeSet<&String> {
        self.dependencies[self.id(package)].iter().map(|dependency| &self.names[&dependency.id]).collect()
    }

    /// Names everything that ends up in a build of `package`.
    fn reachable(&self, package: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![self.id(package)];
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                let needed = self.dependencies[id].iter().filter(|dependency| !dependency.only_for_development);
                open.extend(needed.map(|dependency| dependency.id.as_str()));
            }
        }
        seen.into_iter().map(|id| self.names[id].as_str()).collect()
    }

    fn id(&self, package: &str) -> &str {
        let found = self.names.iter().find(|(_, name)| *name == package);
        found.unwrap_or_else(|| panic!("no package is named {package}")).0
    }
}

fn cargo_metadata() -> Value {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = |arguments: &[&str]| {
        let output = Command::new(&cargo).args(arguments).current_dir(repository()).output().expect("cargo starts");
        assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("cargo writes UTF-8")
    };
    let version = run(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo -vV names the host");
    let metadata = run(&["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host]);
    serde_json::from_str(&metadata).expect("cargo metadata writes JSON")
}
