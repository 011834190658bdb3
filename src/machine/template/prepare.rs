//! Makes a parsed template ready to be rendered within bounds: each action tells when it prints a value, so that it is
//! known in the output what came from a value; everything that does not print tells that a step was taken; and what is
//! compared is counted. The tree does it, not the text: there is nothing that a value could imitate.

use gotmpl::parse::{CommandNode, Expr, ListNode, Node, PipeNode, Pos, TextNode};

/// Takes the value that an action prints. No template can name it, or the next one.
pub const PRINTED: &str = "\u{0}printed";
/// Takes a value that is going to be compared, and gives it back.
pub const COMPARED: &str = "\u{0}compared";

const COMPARISONS: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];

/// The parser bounds how deep templates nest.
pub fn prepare(list: ListNode) -> ListNode {
    let mut nodes = Vec::with_capacity(list.nodes.len());
    for node in list.nodes {
        let node = match node {
            Node::Action(mut action) if action.pipe.decl.is_empty() => {
                action.pipe = pipe(action.pipe);
                action.pipe.commands.push(call(action.pos, PRINTED, Vec::new()));
                nodes.push(Node::Action(action));
                continue;
            }
            Node::Action(mut action) => {
                action.pipe = pipe(action.pipe);
                Node::Action(action)
            }
            Node::If(mut branch) => {
                prepare_branch(&mut branch);
                Node::If(branch)
            }
            Node::Range(mut branch) => {
                prepare_branch(&mut branch);
                Node::Range(branch)
            }
            Node::With(mut branch) => {
                prepare_branch(&mut branch);
                Node::With(branch)
            }
            Node::Template(mut template) => {
                template.pipe = template.pipe.map(pipe);
                Node::Template(template)
            }
            Node::List(list) => Node::List(prepare(list)),
            Node::Text(_) | Node::Define(_) | Node::Break(_) | Node::Continue(_) => {
                nodes.push(node);
                continue;
            }
        };
        // An empty text is a write, and a write is a step.
        nodes.push(Node::Text(TextNode { pos: list.pos, text: "".into() }));
        nodes.push(node);
    }
    // So is each round of a range, also of an empty one.
    if nodes.is_empty() {
        nodes.push(Node::Text(TextNode { pos: list.pos, text: "".into() }));
    }
    ListNode { pos: list.pos, nodes }
}

fn prepare_branch(branch: &mut gotmpl::parse::BranchNode) {
    let nothing = || ListNode { pos: branch.pos, nodes: Vec::new() };
    let body = std::mem::replace(&mut branch.body, nothing());
    branch.body = prepare(body);
    branch.else_body = branch.else_body.take().map(prepare);
    let empty = PipeNode { pos: branch.pos, decl: Vec::new(), commands: Vec::new(), is_assign: false };
    branch.pipe = pipe(std::mem::replace(&mut branch.pipe, empty));
}

fn pipe(pipe: PipeNode) -> PipeNode {
    let mut commands = Vec::with_capacity(pipe.commands.len());
    for (index, mut command) in pipe.commands.into_iter().enumerate() {
        let pos = command.pos;
        let compares =
            matches!(command.args.first(), Some(Expr::Identifier(_, name)) if COMPARISONS.contains(&name.as_str()));
        let arguments = std::mem::take(&mut command.args).into_iter().map(argument);
        command.args = if compares {
            // The value that is piped in is the last argument.
            if index > 0 {
                commands.push(call(pos, COMPARED, Vec::new()));
            }
            arguments
                .enumerate()
                .map(|(place, argument)| if place == 0 { argument } else { compared(argument) })
                .collect()
        } else {
            arguments.collect()
        };
        commands.push(command);
    }
    PipeNode { commands, ..pipe }
}

fn argument(argument: Expr) -> Expr {
    match argument {
        Expr::Pipe(pos, inner) => Expr::Pipe(pos, pipe(inner)),
        Expr::Chain(pos, inner, fields) => Expr::Chain(pos, Box::new(self::argument(*inner)), fields),
        other => other,
    }
}

fn compared(argument: Expr) -> Expr {
    match argument {
        Expr::String(..) | Expr::Number(..) | Expr::Bool(..) | Expr::Nil(_) => argument,
        other => {
            let pos = other.pos();
            let commands = vec![call(pos, COMPARED, vec![other])];
            Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands, is_assign: false })
        }
    }
}

fn call(pos: Pos, function: &'static str, arguments: Vec<Expr>) -> CommandNode {
    let mut args = vec![Expr::Identifier(pos, function.into())];
    args.extend(arguments);
    CommandNode { pos, args }
}
