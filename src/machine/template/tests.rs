//! Functions, bounds, and what becomes of a value in a command.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::machine::data::Item;

fn scope() -> Scope {
    let facts = Facts::new(json!({"role": "web", "cpus": 2, "load": 0.5, "tags": ["a", "b"], "os": {"id": "debian"}}));
    let data = BTreeMap::from([("count".to_owned(), Item::new(json!(7))), ("on".to_owned(), Item::new(json!(true)))]);
    Scope::new(Arc::new(facts), Arc::new(data))
}

fn render(text: &str) -> String {
    Template::parse(text).unwrap().render(&scope()).unwrap().into_owned()
}

#[test]
fn looks_values_up_by_gjson_paths_with_a_default() {
    assert_eq!(render("plain"), "plain");
    assert_eq!(render("{{ lookup \"facts.role\" \"db\" }}"), "web");
    assert_eq!(render("{{ lookup \"facts.os.id\" \"\" }}-{{ lookup `data.count` 1 }}"), "debian-7");
    assert_eq!(render("{{ lookup \"facts.tags.#\" 0 }}{{ lookup \"facts.tags.1\" 0 }}"), "2b");
    assert_eq!(render("{{ lookup \"facts.nope\" \"db\" }} {{ lookup \"data.nope\" 5 }}"), "db 5");
    assert_eq!(render("{{ lookup \"facts.load\" 1 }} {{ lookup \"facts.cpus\" 1 }}"), "0.5 2");
    assert_eq!(render("{{ if lookup \"data.on\" false }}yes{{ end }}"), "yes");
    assert_eq!(render("{{ range lookup \"facts.tags\" \"\" }}<{{ . }}>{{ end }}"), "<a><b>");
}

#[test]
fn has_the_functions_of_the_reference() {
    assert_eq!(render("{{ \"ab cd\" | Title }} {{ Capitalize \"ab cd\" }}"), "Ab Cd Ab cd");
    assert_eq!(render("{{ ToUpper \"a\" }}{{ ToLower \"B\" }}"), "Ab");
    assert_eq!(render("{{ StringsJoin (lookup \"facts.tags\" \"\") \", \" }}"), "a, b");
    assert_eq!(render("{{ Base64Decode (Base64Encode \"hi\") }}"), "hi");
}

#[test]
fn a_fault_is_found_when_the_template_is_read() {
    let message = Template::parse("{{ Titel (lookup `a` 1) }}").unwrap_err().to_string();
    assert!(message.ends_with("calls \"Titel\", which is no function; did you mean \"Title\"?"), "{message}");
    for bad in ["{{ lookup", "{{ lookup \"a }}"] {
        let message = Template::parse(bad).unwrap_err().to_string();
        assert!(message.starts_with("the template") && message.contains("can't be read"), "{bad}: {message}");
    }
    for bad in ["{{ if true }}x", "x{{ end }}y", "{{ if true }}a{{ else }}b", "{{ define \"a\" }}x"] {
        let message = Template::parse(bad).unwrap_err().to_string();
        assert!(message.contains("without its end"), "{bad}: {message}");
    }
    for good in ["{{ if true }}x{{ end }}", "x{{- /* a comment */ -}}  ", "{{ define \"a\" }}x{{ end }}"] {
        Template::parse(good).unwrap();
    }
}

#[test]
fn a_fault_in_rendering_is_told_and_the_output_is_bounded() {
    let error = |text: &str| Template::parse(text).unwrap().render(&scope()).unwrap_err().to_string();
    assert!(error("{{ Base64Decode \"%\" }}").contains("Base64Decode"));
    assert!(error("{{ lookup }}").contains("lookup takes a path"));
    let endless = "{{ range 9000 }}{{ printf \"%9000d\" 1 }}{{ end }}";
    assert!(error(endless).contains("more than 1048576 bytes"), "{}", error(endless));
    assert!(error("{{ range 90000 }}{{ end }}").contains("budget"));
}

#[test]
fn what_it_looks_up_is_known_to_the_checker() {
    let template = Template::parse("{{ lookup \"data.a\" 1 }}{{ Title (lookup `facts.b.c` `x`) }}").unwrap();
    assert_eq!(template.lookups(), ["data.a", "facts.b.c"]);
}

#[test]
fn quote_makes_one_word_of_a_shell_whatever_the_value_holds() {
    assert_eq!(render("{{ Quote \"it's $(id)\" }}"), "'it'\\''s $(id)'");
    assert_eq!(render("{{ Quote (lookup \"data.count\" 0) }}"), "'7'");
    assert_eq!(shell_words::split(&render("{{ Quote `a\n'b\\` }}")).unwrap(), ["a\n'b\\"]);
}

#[test]
fn paths_that_would_overflow_the_stack_are_refused_when_read_and_when_rendered() {
    for open in ["[", "{", "#("] {
        let path = open.repeat(5_000);
        let message = Template::parse(&format!("{{{{ lookup `{path}` 1 }}}}")).unwrap_err().to_string();
        assert!(message.contains("looks up a path that can't be followed") && message.contains("the limit is 1024"));
        let computed = format!("{{{{ $p := `{path}` }}}}{{{{ lookup (print `data.` $p) 1 }}}}");
        let message = Template::parse(&computed).unwrap().render(&scope()).unwrap_err().to_string();
        assert!(message.contains("the limit is 1024"), "{message}");
    }
}

/// What the process holds at most, in kilobytes.
fn peak_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn what_a_rendering_holds_and_does_is_bounded_whatever_the_template_says() {
    let long = "x".repeat(400_000);
    let data = BTreeMap::from([
        ("long".to_owned(), Item::new(json!(long))),
        ("list".to_owned(), Item::new(json!(vec![1; 100_000]))),
    ]);
    let scope = Scope::new(Arc::new(Facts::new(json!({}))), Arc::new(data));
    let doubled =
        |grow: &str| format!("{{{{ $x := `xxxxxxxx` }}}}{{{{ range 60 }}}}{{{{ $x = {grow} }}}}{{{{ end }}}}");
    let define = |name: usize| {
        format!(
            "{{{{ define \"t{name}\" }}}}{{{{ template \"t{0}\" }}}}{{{{ template \"t{0}\" }}}}{{{{ end }}}}",
            name + 1
        )
    };
    let calls: String = (0..100).map(define).collect();
    let memory = "its values have more than 16777216 bytes together";
    let steps = "it takes too many steps, or looks at too much data too often";
    let cases = [
        (doubled("print $x $x"), memory),
        (doubled("println $x $x"), memory),
        (doubled("printf `%s%s` $x $x"), memory),
        (doubled("printf `%[1]s%[1]s%[1]s%[1]s` $x"), memory),
        (doubled("print (html $x) $x"), memory),
        (doubled("js (print `<` $x `'` $x)"), memory),
        (doubled("urlquery (print `é` $x $x)"), memory),
        (doubled("Base64Encode (Base64Encode (Base64Encode $x))"), memory),
        (doubled("Quote (Quote (Quote (print $x `'` $x)))"), memory),
        (doubled("StringsJoin (lookup `data.list` ``) $x"), memory),
        ("{{ printf `%999999999d%999999999d` 1 2 }}{{ range 900 }}{{ $x := printf `%65535d` 1 }}{{ end }}".to_owned(), memory),
        ("{{ $x := lookup `data.list` `` }}{{ range 9000 }}{{ $y := slice $x 1 90000 }}{{ end }}".to_owned(), memory),
        ("{{ range 9000 }}{{ $x := lookup `data.list` `` }}{{ end }}".to_owned(), memory),
        ("{{ range 9000 }}{{ $x := lookup `data.nope` `` }}{{ end }}".to_owned(), steps),
        ("{{ $x := lookup `data.long` `` }}{{ $y := print $x }}{{ range 9000 }}{{ if eq $x $y }}{{ end }}{{ end }}".to_owned(), steps),
        ("{{ $x := lookup `data.long` `` }}{{ $y := print $x }}{{ range 9000 }}{{ if $x | eq $y }}{{ end }}{{ end }}".to_owned(), steps),
        (format!("{calls}{{{{ define \"t100\" }}}}{{{{ end }}}}{{{{ template \"t0\" }}}}"), steps),
        (format!("{calls}{{{{ define \"t100\" }}}}{{{{ $x := 1 }}}}{{{{ end }}}}{{{{ template \"t0\" }}}}"), steps),
        ("{{ range 9000 }}".to_owned() + &"{{ $x := 1 }}".repeat(1_000) + "{{ end }}", steps),
    ];
    let before = peak_kilobytes();
    for (text, expected) in cases {
        let begun = std::time::Instant::now();
        let message = Template::parse(&text).unwrap().render(&scope).unwrap_err().to_string();
        let shown: String = text.chars().take(120).collect();
        assert!(message.contains(expected), "{shown}: {message}");
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(30), "{shown} took {took:?}");
    }
    // Twice the values, for what is made of them, and what the other tests of this process do meanwhile.
    assert!(peak_kilobytes() - before < 256 * 1024, "{} kB", peak_kilobytes() - before);
}

#[test]
fn what_a_path_multiplies_counts_at_each_lookup() {
    // A few bytes, of which each look makes a million.
    let path = ["[@this,@this]"; 13].join("|");
    let text = format!("{{{{ range 9000 }}}}{{{{ $x := lookup `data.{path}|#` 1 }}}}{{{{ end }}}}");
    let message = Template::parse(&text).unwrap().render(&scope()).unwrap_err().to_string();
    assert!(message.contains("it takes too many steps, or looks at too much data too often"), "{message}");
}

#[test]
fn what_templates_do_in_earnest_is_within_the_bounds() {
    let hosts: Vec<_> = (0..2_000).map(|number| json!({"name": format!("web{number}"), "port": number})).collect();
    let data = BTreeMap::from([("hosts".to_owned(), Item::new(json!(hosts)))]);
    let scope = Scope::new(Arc::new(Facts::new(json!({"domain": "example.net"}))), Arc::new(data));
    let text = "{{ range $i, $host := lookup `data.hosts` `` }}{{ if gt $i 0 }},{{ end }}{{ printf `%-10s:%05d` $host.name \
                $host.port }}.{{ lookup `facts.domain` `` | ToUpper }}{{ end }}";
    let rendered = Template::parse(text).unwrap().render(&scope).unwrap().into_owned();
    assert!(rendered.starts_with("web0      :00000.EXAMPLE.NET,web1      :00001.EXAMPLE.NET,"), "{rendered:.80}");
    assert_eq!(rendered.split(',').count(), 2_000);
}

/// The functions that are replaced do what the library's do.
#[test]
fn functions_that_count_give_what_the_languages_own_give() {
    let texts = [
        "{{ print 1 2 }}",
        "{{ print 1 `a` 2 }}",
        "{{ print `a` `b` }}",
        "{{ print nil true 1.5 }}",
        "{{ print }}",
        "{{ println 1 `a` }}",
        "{{ println }}",
        "{{ printf `%d-%s` 1 `a` }}",
        "{{ printf `%5.2f|%-6s|%06d|%x|%q` 1.5 `ab` 42 `hi` `x\"y` }}",
        "{{ printf `%v %v` 1 `a` }}",
        "{{ printf `%*d` 5 1 }}",
        "{{ printf `%d` }}",
        "{{ printf `x` 1 }}",
        "{{ printf `%[2]d %[1]d` 1 2 }}",
        "{{ html `<a href=\"x\">'&` }}",
        "{{ js `it's <b> \"x\" é` }}",
        "{{ urlquery `a b&c=é` }}",
        "{{ html 5 }}",
        "{{ html nil }}",
        "{{ slice `hello` 1 3 }}",
        "{{ slice `hello` 2 }}",
        "{{ slice `hello` }}",
        "{{ `a` | printf `%s-%s` `b` }}",
        "{{ 1 | eq 1 }}",
        "{{ eq 1 2 1 }}",
        "{{ lt `a` `b` }}",
        "{{ ge 2 (len `ab`) }}",
        "{{ ne (print 1) `1` }}",
        "{{ if and true (eq (len `a`) 1) }}y{{ end }}",
        "{{ with `x` }}{{ . }}{{ end }}",
        "{{ define `t` }}<{{ . }}>{{ end }}{{ template `t` 5 }}",
        "a {{- 1 -}} b",
        "{{/* c */}}",
        " ",
        "{{ range 3 }}{{ . }}{{ else }}n{{ end }}{{ range 0 }}{{ else }}n{{ end }}",
        "{{ block `b` 1 }}{{ . }}{{ end }}",
        "{{ and }}",
        "{{ range 5 }}{{ if eq . 1 }}{{ continue }}{{ end }}{{ if eq . 3 }}{{ break }}{{ end }}{{ . }}{{ end }}",
        "{{ slice `é` 1 }}",
        "{{ index `abc` 1 }}",
        "{{ not 1 }}",
        "{{ $x := 1 }}{{ $x = 2 }}{{ $x }}",
        "{{ $.nope }}",
        "{{ eq }}",
        "{{ call nil }}",
        "{{ html }}",
        "{{ (print 1 2 | len).x }}",
        "{{ if true }}a{{ else if false }}b{{ else }}c{{ end }}",
        "{{ eq nil nil }}",
        "{{ eq (print) `` }}",
    ];
    for text in texts {
        let ours = Template::parse(text).unwrap().render(&scope()).map(Cow::into_owned);
        let theirs = gotmpl::execute(text, &gotmpl::Value::Nil);
        assert_eq!(ours.as_ref().ok(), theirs.as_ref().ok(), "{text}: {ours:?}, {theirs:?}");
    }
}

#[test]
fn nesting_as_deep_as_is_taken_keeps_within_the_stack_of_a_worker() {
    let calls: String = (0..250)
        .map(|name| {
            format!(
                "{{{{ define \"t{name}\" }}}}{{{{ if true }}}}{{{{ template \"t{}\" . }}}}{{{{ end }}}}{{{{ end }}}}",
                name + 1
            )
        })
        .collect();
    let texts = vec![
        "{{ define `a` }}{{ template `a` }}{{ end }}{{ template `a` }}".to_owned(),
        format!("{calls}{{{{ define \"t250\" }}}}x{{{{ end }}}}{{{{ template \"t0\" . }}}}"),
        format!("{{{{ {}1{} }}}}", "(print ".repeat(95), ")".repeat(95)),
        format!("{{{{ {}1{} }}}}", "(print ".repeat(5_000), ")".repeat(5_000)),
        format!("{{{{ {}1{} }}}}", "(eq 1 ".repeat(95), ")".repeat(95)),
        "{{ if 1 }}".repeat(95) + &"{{ end }}".repeat(95),
        "{{ if 1 }}".repeat(5_000) + &"{{ end }}".repeat(5_000),
        "{{ if 0 }}".to_owned() + &"{{ else if 0 }}".repeat(100) + "{{ end }}",
        "{{ with 0 }}".to_owned() + &"{{-  else with 0 -}}".repeat(100) + "{{ end }}",
        format!("{{{{ 1{} }}}}", " | print".repeat(20_000)),
        format!("{{{{ $x := 1 }}}}{{{{ $x{} }}}}", ".a".repeat(20_000)),
    ];
    let scope = scope();
    let look = move || {
        for text in texts {
            if let Ok(template) = Template::parse(&text) {
                _ = template.render(&scope);
                _ = template.hazards(Form::Command);
            }
        }
    };
    std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(look).unwrap().join().unwrap();
}

#[test]
fn a_chain_of_alternatives_that_would_overflow_the_stack_is_refused() {
    for action in ["{{ else if 0 }}", "{{else if 0}}", "{{-\n else with 0 -}}", "{{else\tif 0}}"] {
        let text = "{{ if 0 }}".to_owned() + &action.repeat(5_000) + "{{ end }}";
        let message = Template::parse(&text).unwrap_err().to_string();
        assert!(message.ends_with("has more than 100 else if and else with"), "{message}");
    }
    Template::parse(&"{{ if 0 }}a{{ else }}b{{ end }}".repeat(500)).unwrap();
}

fn words(text: &str, value: &str) -> Result<Vec<String>, String> {
    let data =
        BTreeMap::from([("v".to_owned(), Item::new(json!(value))), ("l".to_owned(), Item::new(json!([value, value])))]);
    let scope = Scope::new(Arc::new(Facts::new(json!({}))), Arc::new(data));
    let rendered = Template::parse(text).unwrap().render_command(&scope).map_err(|error| error.to_string())?;
    rendered.words().map_err(|error| error.to_string())
}

const HOSTILE: [&str; 12] = [
    "'; rm -rf /; '",
    "\"; rm -rf /; \"",
    "\\",
    "'",
    "\"",
    "$(id)",
    "a\nb",
    "a b\t c",
    "# x",
    "",
    "\u{0}printed",
    "\u{1}é",
];

#[test]
fn a_value_that_is_rendered_inside_quotes_never_leaves_them() {
    for value in HOSTILE.into_iter().filter(|value| !value.contains('\0')) {
        for text in [
            "run '{{ lookup `data.v` `` }}' last",
            "run \"{{ lookup `data.v` `` }}\" last",
            "run '{{- /* c */ -}}{{ $x := lookup `data.v` `` }}{{ $x }}' last",
            "run '{{ if true }}{{ lookup `data.v` `` }}{{ else }}n{{ end }}' last",
            "run '{{ with lookup `data.v` `` }}{{ . }}{{ end }}' last",
            "run {{ if true }}'{{ lookup `data.v` `` }}'{{ end }} last",
            "run {{ define `q` }}'{{ . }}'{{ end }}{{ template `q` (lookup `data.v` ``) }} last",
            "run '{{ template `q` . }}' last{{ define `q` }}{{ lookup `data.v` `` }}{{ end }}",
            "run '{{ print (lookup `data.v` ``) | printf `%s` }}' last",
            "run '{{ lookup `data.v` `` | printf `%s` }}' {{ `last` }}",
            "run {{ Quote (lookup `data.v` ``) }} last",
        ] {
            assert_eq!(words(text, value).unwrap(), ["run", value, "last"], "{text}");
        }
        let joined = format!("--a={value}{value}x");
        assert_eq!(
            words("run --a=\"{{ range lookup `data.l` `` }}{{ . }}{{ end }}x\"", value).unwrap(),
            ["run", &joined]
        );
    }
    assert_eq!(words("run '{{ lookup `data.v` `` }}'", "a\0b").unwrap_err(), "must not hold a NUL character");
}

#[test]
fn a_value_outside_of_quotes_is_split_and_can_not_open_what_it_does_not_close() {
    assert_eq!(words("run {{ lookup `data.v` `` }} last", "-a 'b c' d").unwrap(), ["run", "-a", "b c", "d", "last"]);
    assert_eq!(words("run {{ lookup `data.v` `` }} last", "").unwrap(), ["run", "last"]);
    assert_eq!(words("run a{{ lookup `data.v` `` }}b", "1 2").unwrap(), ["run", "a1", "2b"]);
    for value in ["'", "\"", "a\\", "x 'y"] {
        let error = words("run {{ lookup `data.v` `` }} '{{ lookup `data.v` `` }}'", value).unwrap_err();
        assert!(error.ends_with("put the template in quotes"), "{error}");
    }
    assert_eq!(words("run '{{ lookup `data.v` `` }}", "x").unwrap_err(), "\"run 'x\": missing closing quote");
    assert_eq!(words("{{ lookup `data.v` `` }}", "").unwrap_err(), "is empty");
}

#[test]
fn hazards_are_values_of_the_data_outside_of_quotes_and_in_scripts() {
    let found = |form: Form, text: &str| -> Vec<String> {
        let hazards = Template::parse_with(text, &["o"]).unwrap().hazards(form);
        hazards
            .into_iter()
            .map(|hazard| match hazard.place {
                HazardPlace::OutsideOfQuotes => hazard.source,
                HazardPlace::Script { of } => format!("{of}: {}", hazard.source),
                HazardPlace::NameOfVariable => format!("=: {}", hazard.source),
            })
            .collect()
    };
    let command = |text: &str| found(Form::Command, text);
    assert_eq!(command("run {{ lookup `data.a` `` }}"), ["data.a"]);
    assert_eq!(command("run {{ ToUpper (lookup `data.a` ``) | Title }} {{ lookup `data.a` 1 }}"), ["data.a"]);
    assert_eq!(command("run {{ $x := lookup `data.a` `` }}'{{ $x }}' {{ $x }}"), ["data.a"]);
    assert_eq!(command("run {{ range lookup `data.a` `` }}{{ .name }} {{ end }}"), ["data.a"]);
    assert_eq!(command("{{ define `t` }}{{ . }}{{ end }}run {{ template `t` (lookup `data.a` ``) }}"), ["data.a"]);
    assert_eq!(command("run {{ lookup (print `data.` `a`) `` }}"), ["lookup"]);
    assert_eq!(command("run {{ lookup `facts.a` (lookup `data.b` ``) }}"), ["data.b"]);
    assert_eq!(command("run -w {{ o `load.warn` 5 }}"), ["load.warn"]);
    assert_eq!(command("timeout 5 /bin/sh -ec 'echo {{ lookup `data.a` `` }}' x"), ["sh: data.a"]);
    for fine in [
        "run {{ lookup `facts.a` `` }} '{{ lookup `data.a` `` }}' \"{{ lookup `data.b` `` }}\"",
        "run {{ Quote (lookup `data.a` ``) }} {{ lookup `data.a` `` | Quote }} {{ len (lookup `data.l` ``) }}",
        "sh -c 'echo \"$1\"' sh '{{ lookup `data.a` `` }}'",
        "sh -c 'echo {{ Quote (lookup `data.a` ``) }}'",
        "run {{ if lookup `data.a` `` }}-v{{ end }} {{ if eq (lookup `data.a` ``) `x` }}-x{{ end }}",
        "run # {{ lookup `data.a` `` }}",
    ] {
        assert_eq!(command(fine), [""; 0], "{fine}");
    }
    assert_eq!(found(Form::Variable, "{{ lookup `data.a` `` }}=x"), ["=: data.a"]);
    assert_eq!(found(Form::Variable, "A={{ lookup `data.a` `` }}"), [""; 0]);
}

#[test]
fn a_lookup_of_facts_that_can_not_be_used_fails_in_spite_of_its_default() {
    let node = crate::node::Node::new(crate::names::Identity::new("n1").unwrap(), json!({"a": 1}), Arc::from([]));
    node.set_facts_unusable("facts file /f is half written".to_owned());
    let scope = Scope::new(node.facts(), Arc::new(BTreeMap::from([("d".to_owned(), Item::new(json!(1)))])));
    let render = |text: &str| Template::parse(text).unwrap().render(&scope).map(Cow::into_owned);
    for text in [
        "{{ lookup `facts.a` `x` }}",
        "{{ lookup `facts` `x` }}",
        "{{ lookup `@this` `x` }}",
        "{{ lookup `[facts.a]` 1 }}",
    ] {
        let message = render(text).unwrap_err().to_string();
        assert!(message.contains("the facts can't be used: facts file /f is half written"), "{message}");
    }
    for text in ["{{ lookup `data.d` 2 }}", "{{ lookup `data|d` 2 }}"] {
        assert_eq!(render(text).unwrap(), "1");
    }
}
