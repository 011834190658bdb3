//! The planner's table of cases.

use super::*;

const POLICY: Policy = Policy { purge: Purge::Unknown, removals: Removals::Guarded, hold_removals_over_percent: 50 };

fn name(text: &str) -> MachineName {
    MachineName::new(text).unwrap()
}

fn digest(seed: &str) -> Sha256Digest {
    Sha256Digest::of(seed.as_bytes())
}

fn wanted(text: &str, content: &str, matching: Matching) -> Wanted {
    Wanted {
        name: name(text),
        checksum: digest(content),
        verify_checksum: digest(&format!("{content} sums")),
        matching,
    }
}

fn installed(content: &str, condition: Condition) -> Installed {
    Installed { checksum: digest(content), verify_checksum: Some(digest(&format!("{content} sums"))), condition }
}

fn inventory(machines: &[(&str, Installed)]) -> Inventory {
    let machines = machines.iter().map(|(text, machine)| (name(text), machine.clone())).collect();
    Inventory { machines, foreign: BTreeMap::new() }
}

fn many(count: usize) -> Inventory {
    let machines: Vec<_> = (0..count).map(|index| (format!("m{index}"), installed("one", Condition::Sound))).collect();
    let borrowed: Vec<_> = machines.iter().map(|(name, machine)| (name.as_str(), machine.clone())).collect();
    inventory(&borrowed)
}

fn keep(count: usize) -> Vec<Wanted> {
    (0..count).map(|index| wanted(&format!("m{index}"), "one", Matching::Matches)).collect()
}

fn removed(plan: &Plan) -> usize {
    plan.steps.iter().filter(|step| step.action == Action::Remove).count()
}

#[test]
fn what_is_broken_and_what_must_go_comes_before_what_is_new() {
    let drifted = || Condition::Drifted(vec!["\"run.sh\" was changed".to_owned()]);
    let there = [("b", installed("two", Condition::Sound)), ("y", installed("one", drifted()))];
    let wanted = ["a", "b", "y"].map(|name| wanted(name, "one", Matching::Matches));
    let mut plan =
        plan(&wanted, &inventory(&[&there[..], &[("z", installed("one", Condition::Sound))]].concat()), POLICY);
    urgent_first(&mut plan.steps);
    let order: Vec<_> = plan.steps.iter().map(|step| (step.name.as_str(), step.action.word())).collect();
    assert_eq!(order, [("y", "repair"), ("z", "remove"), ("a", "install"), ("b", "upgrade")]);
}

/// What is tried, what the specification says, what is installed, the purge policy, how the action starts.
type Case = (&'static str, Option<Matching>, Option<Installed>, Purge, &'static str);

#[test]
fn one_machine_in_every_situation() {
    use Matching::{DoesNotMatch, Failed, Matches};
    let drifted = || Condition::Drifted(vec!["\"run.sh\" was changed".to_owned()]);
    let failed = || Failed("identity() takes one argument".to_owned());
    let cases: Vec<Case> = vec![
        ("new", Some(Matches), None, Purge::Unknown, "install"),
        ("as it should be", Some(Matches), Some(installed("one", Condition::Sound)), Purge::Unknown, "keep"),
        ("edited", Some(Matches), Some(installed("one", drifted())), Purge::Unknown, "repair (\"run.sh\" was changed)"),
        ("other content", Some(Matches), Some(installed("two", Condition::Sound)), Purge::Unknown, "upgrade from "),
        ("other content, edited", Some(Matches), Some(installed("two", drifted())), Purge::Unknown, "upgrade from "),
        ("not for this node", Some(DoesNotMatch), None, Purge::Unknown, "skip (its match expression is false here)"),
        (
            "no longer for this node",
            Some(DoesNotMatch),
            Some(installed("one", Condition::Sound)),
            Purge::Unknown,
            "remove",
        ),
        (
            "no longer for this node, no purge",
            Some(DoesNotMatch),
            Some(installed("one", Condition::Sound)),
            Purge::Keep,
            "skip (its match expression is false here; it stays, as purge_unknown is off)",
        ),
        ("no longer listed", None, Some(installed("one", drifted())), Purge::Unknown, "remove"),
        (
            "no longer listed, no purge",
            None,
            Some(installed("one", Condition::Sound)),
            Purge::Keep,
            "skip (the specification does not list it; it stays, as purge_unknown is off)",
        ),
        (
            "unknown whether for this node",
            Some(failed()),
            None,
            Purge::Unknown,
            "hold (its match expression failed: identity() takes one argument)",
        ),
        (
            "installed, unknown whether for this node",
            Some(failed()),
            Some(installed("two", Condition::Sound)),
            Purge::Unknown,
            "hold (its match expression failed: identity() takes one argument)",
        ),
    ];
    for (case, matching, machine, purge, expected) in cases {
        let mut entries = vec![wanted("other", "one", DoesNotMatch)];
        entries.extend(matching.map(|matching| wanted("facts", "one", matching)));
        let machines: Vec<_> = machine.into_iter().map(|machine| ("facts", machine)).collect();
        let plan = plan(&entries, &inventory(&machines), Policy { purge, ..POLICY });
        let action = &plan.steps.iter().find(|step| step.name == "facts").unwrap().action;
        assert!(action.to_string().starts_with(expected), "{case}: {action}");
        assert_eq!(plan.held, None, "{case}");
    }
}

#[test]
fn another_checksums_file_for_the_same_archive_is_not_kept() {
    let machine = Installed { verify_checksum: Some(digest("other")), ..installed("one", Condition::Sound) };
    let plan = plan(&[wanted("facts", "one", Matching::Matches)], &inventory(&[("facts", machine)]), POLICY);
    assert_eq!(plan.steps[0].action, Action::Upgrade { from: digest("one") });
}

#[test]
fn a_lost_record_alone_is_no_reason_to_download() {
    let machine = Installed { verify_checksum: None, ..installed("one", Condition::Sound) };
    let plan = plan(&[wanted("facts", "one", Matching::Matches)], &inventory(&[("facts", machine)]), POLICY);
    assert_eq!(plan.steps[0].action, Action::Keep);
}

#[test]
fn foreign_things_are_shown_and_never_touched() {
    let mut stock = inventory(&[("facts", installed("one", Condition::Sound))]);
    stock.foreign.insert("by hand".to_owned(), "it is a directory".to_owned());
    stock.foreign.insert("taken".to_owned(), "it is a directory".to_owned());
    let entries = [wanted("facts", "one", Matching::Matches), wanted("taken", "one", Matching::Matches)];
    let plan = plan(&entries, &stock, POLICY);
    let shown: Vec<_> = plan.steps.iter().map(|step| format!("{}: {}", step.name, step.action)).collect();
    assert_eq!(
        shown,
        [
            "by hand: skip (it is a directory; sync did not install it and leaves it alone)",
            "facts: keep",
            "taken: hold (it is a directory, and sync did not install it: move it aside)",
        ]
    );
}

#[test]
fn an_empty_list_removes_nothing_until_it_is_allowed() {
    for count in [1, 3, 10] {
        let held = plan(&[], &many(count), POLICY);
        assert_eq!(removed(&held), 0);
        let reason = held.held.unwrap().reason;
        assert!(reason.contains(&format!("would remove all {count} installed")), "{reason}");
        assert!(reason.contains("machinesd sync --allow-removals"), "{reason}");
        assert_eq!(removed(&plan(&[], &many(count), Policy { removals: Removals::Allowed, ..POLICY })), count);
    }
    assert_eq!(plan(&[], &many(0), POLICY), Plan { steps: Vec::new(), held: None });
    assert_eq!(plan(&[], &many(3), Policy { purge: Purge::Keep, ..POLICY }).held, None);
}

#[test]
fn removals_over_the_share_are_held_and_all_else_goes_on() {
    // installed, still wanted, percent, removed
    let cases = [(4, 2, 50, 2), (4, 1, 50, 0), (5, 2, 50, 0), (3, 1, 50, 2), (10, 5, 50, 5), (10, 4, 50, 0)];
    let more = [(10, 9, 0, 0), (10, 1, 100, 9)];
    for (count, still, percent, expected) in cases.into_iter().chain(more) {
        let policy = Policy { hold_removals_over_percent: percent, ..POLICY };
        let mut entries = keep(still);
        entries.push(wanted("new", "one", Matching::Matches));
        let held = plan(&entries, &many(count), policy);
        assert_eq!(removed(&held), expected, "{count} installed, {still} wanted, {percent}%");
        assert_eq!(held.held.is_some(), expected == 0);
        assert!(held.steps.iter().any(|step| step.action == Action::Install));
        let allowed = plan(&entries, &many(count), Policy { removals: Removals::Allowed, ..policy });
        assert_eq!(removed(&allowed), count - still);
    }
}

#[test]
fn the_plan_does_not_depend_on_the_order_of_entries() {
    let mut entries = keep(6);
    let forward = plan(&entries, &many(7), POLICY);
    entries.reverse();
    assert_eq!(plan(&entries, &many(7), POLICY), forward);
}
