//! SVG, laid out here. Texts are in a monospaced font, so that their width is known without the font.

use super::layout::{Line, Point, Size, lay_out};
use super::{Arrow, Drawing, MadeBy};

/// A picture with more states or arrows than this can't be read, nor laid out in a moment.
const MAXIMUM_STATES: usize = 100;
const MAXIMUM_ARROWS: usize = 400;

const FONT: f64 = 13.0;
const SMALL: f64 = 11.0;
/// Of a monospaced font, as part of its size; most have 0.6.
const ADVANCE: f64 = 0.61;
const LEADING: f64 = 1.4;
const PADDING: f64 = 10.0;
const MARGIN: f64 = 20.0;
/// Room above the first row for the title and the mark of the initial state.
const TOP: f64 = 78.0;
/// How far an arrow from a state to itself goes out to the right.
const LOOP: f64 = 26.0;

/// A machine that is too large for a picture.
#[derive(Debug, thiserror::Error)]
#[error(
    "{states} states and {arrows} arrows are too many for a picture, which may have {MAXIMUM_STATES} and \
     {MAXIMUM_ARROWS}: draw it with --format dot and Graphviz"
)]
pub struct TooLarge {
    states: usize,
    arrows: usize,
}

/// The drawing as a picture.
///
/// # Errors
/// When there is too much to draw.
pub fn svg(drawing: &Drawing) -> Result<String, TooLarge> {
    if drawing.states.len() > MAXIMUM_STATES || drawing.arrows.len() > MAXIMUM_ARROWS {
        return Err(TooLarge { states: drawing.states.len(), arrows: drawing.arrows.len() });
    }
    let (circles, lines): (Vec<&Arrow>, Vec<&Arrow>) = drawing.arrows.iter().partition(|arrow| arrow.from == arrow.to);
    let bodies: Vec<Size> = drawing
        .states
        .iter()
        .map(|state| {
            let watchers = state.watchers.iter().map(|line| width(line, SMALL)).fold(0.0, f64::max);
            let below = if state.watchers.is_empty() { 0.0 } else { 6.0 + rows(state.watchers.len(), SMALL) };
            Size {
                width: (width(&state.name, FONT).max(watchers) + 2.0 * PADDING).max(90.0),
                height: FONT * LEADING + below + 1.4 * PADDING,
            }
        })
        .collect();
    // A state with an arrow to itself takes the room of both, with the box on the left of it.
    let mut sizes = bodies.clone();
    for arrow in &circles {
        if let Some(size) = sizes.get_mut(arrow.from) {
            let text = text_size(arrow);
            // On both sides, so that the box stays in the middle.
            size.width += 2.0 * (LOOP + text.width + 8.0);
            size.height = size.height.max(text.height + 12.0);
        }
    }
    let measured: Vec<Line> =
        lines.iter().map(|arrow| Line { from: arrow.from, to: arrow.to, text: text_size(arrow) }).collect();
    let layout = lay_out(&sizes, &bodies, &measured);
    let has_hand = drawing.arrows.iter().any(Arrow::is_by_hand);
    let legend = if has_hand { 30.0 } else { 0.0 };
    let mut page = Page { text: String::new(), origin: Point { x: MARGIN, y: TOP } };
    let title = width(&drawing.title, FONT + 2.0);
    let total = Size {
        width: layout.size.width.max(title).max(if has_hand { 230.0 } else { 0.0 }) + 2.0 * MARGIN,
        height: TOP + layout.size.height + legend + MARGIN,
    };
    page.head(&drawing.title, total);
    for (way, arrow) in layout.ways.iter().zip(&lines) {
        page.line(way, arrow);
    }
    for arrow in &circles {
        if let (Some(middle), Some(body)) = (layout.boxes.get(arrow.from), bodies.get(arrow.from)) {
            page.circle(*middle, *body, arrow);
        }
    }
    for ((state, body), middle) in drawing.states.iter().zip(&bodies).zip(&layout.boxes) {
        page.state(&state.name, &state.watchers, *body, *middle);
    }
    if let (Some(body), Some(middle)) = (bodies.first(), layout.boxes.first()) {
        page.start(*body, *middle);
    }
    for (middle, arrow) in layout.texts.iter().zip(&lines) {
        page.label(*middle, arrow, "middle");
    }
    if has_hand {
        page.legend(total);
    }
    page.text.push_str("</svg>\n");
    Ok(page.text)
}

fn width(text: &str, size: f64) -> f64 {
    // Letters outside of Latin, Greek and Cyrillic may be twice as wide.
    let letters: u32 = text.chars().map(|character| if u32::from(character) < 0x1100 { 1 } else { 2 }).sum();
    f64::from(letters) * size * ADVANCE
}

fn rows(count: usize, size: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) * size * LEADING
}

fn text_size(arrow: &Arrow) -> Size {
    let widest = arrow.transitions.iter().map(|step| width(&step.text, SMALL)).fold(0.0, f64::max);
    Size { width: widest + 8.0, height: rows(arrow.transitions.len(), SMALL) + 6.0 }
}

struct Page {
    text: String,
    origin: Point,
}

impl Page {
    fn head(&mut self, title: &str, size: Size) {
        let Size { width, height } = size;
        self.text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\">\n\
             <title>{title}</title>\n\
             <defs><marker id=\"tip\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"8\" \
             markerHeight=\"8\" orient=\"auto-start-reverse\"><path d=\"M0 0L10 5L0 10z\" fill=\"#44546a\"/></marker>\
             </defs>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{MARGIN}\" y=\"28\" font-size=\"{}\" font-weight=\"bold\" fill=\"#1f2a3a\">{title}</text>\n",
            FONT + 2.0,
            title = escaped(title),
        );
    }

    fn line(&mut self, way: &[Point], arrow: &Arrow) {
        let mut path = String::new();
        let mut before: Option<Point> = None;
        for point in way {
            let (x, y) = (point.x + self.origin.x, point.y + self.origin.y);
            match before {
                None => path.push_str(&format!("M{x:.1} {y:.1}")),
                Some(Point { x: x0, y: y0 }) => {
                    let middle = f64::midpoint(y0, y);
                    path.push_str(&format!("C{x0:.1} {middle:.1} {x:.1} {middle:.1} {x:.1} {y:.1}"));
                }
            }
            before = Some(Point { x, y });
        }
        self.path(&path, arrow);
    }

    fn path(&mut self, path: &str, arrow: &Arrow) {
        let dashes = if arrow.is_by_hand() { " stroke-dasharray=\"6 4\"" } else { "" };
        self.text.push_str(&format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"#44546a\" stroke-width=\"1.3\" marker-end=\"url(#tip)\"{dashes}/>\n"
        ));
    }

    fn circle(&mut self, middle: Point, body: Size, arrow: &Arrow) {
        let x = middle.x + self.origin.x + body.width / 2.0;
        let y = middle.y + self.origin.y;
        let (out, reach) = (x + LOOP * 1.3, body.height * 0.28);
        let (upper, lower) = (y - reach, y + reach);
        let path = format!("M{x:.1} {upper:.1}C{out:.1} {upper:.1} {out:.1} {lower:.1} {x:.1} {lower:.1}");
        self.path(&path, arrow);
        let text = Point { x: middle.x + body.width / 2.0 + LOOP, y: middle.y };
        self.label(text, arrow, "start");
    }

    fn state(&mut self, name: &str, watchers: &[String], body: Size, middle: Point) {
        let x = middle.x + self.origin.x;
        let top = middle.y + self.origin.y - body.height / 2.0;
        self.text.push_str(&format!(
            "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"9\" fill=\"#eef3fa\" \
             stroke=\"#2f5b93\" stroke-width=\"1.4\"/>\n",
            x - body.width / 2.0,
            body.width,
            body.height
        ));
        let mut y = top + 0.7 * PADDING + FONT;
        self.text.push_str(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{FONT}\" font-weight=\"bold\" text-anchor=\"middle\" \
             fill=\"#1f2a3a\">{}</text>\n",
            escaped(name)
        ));
        y += 6.0 + FONT * (LEADING - 1.0);
        for watcher in watchers {
            y += SMALL * LEADING;
            self.text.push_str(&format!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"{SMALL}\" text-anchor=\"middle\" fill=\"#4a5a70\">{}</text>\n",
                y - SMALL * (LEADING - 1.0),
                escaped(watcher)
            ));
        }
    }

    /// The mark of the initial state.
    fn start(&mut self, body: Size, middle: Point) {
        let x = middle.x + self.origin.x - body.width / 2.0 + 14.0;
        let top = middle.y + self.origin.y - body.height / 2.0;
        self.text.push_str(&format!(
            "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"#1f2a3a\"/>\n\
             <path d=\"M{x:.1} {:.1}L{x:.1} {top:.1}\" stroke=\"#44546a\" stroke-width=\"1.3\" \
             marker-end=\"url(#tip)\"/>\n",
            top - 24.0,
            top - 19.0
        ));
    }

    fn label(&mut self, middle: Point, arrow: &Arrow, anchor: &str) {
        let x = middle.x + self.origin.x;
        let mut y = middle.y + self.origin.y - rows(arrow.transitions.len(), SMALL) / 2.0;
        for step in &arrow.transitions {
            y += SMALL * LEADING;
            let style = if step.made_by == MadeBy::Hand { " font-style=\"italic\"" } else { "" };
            self.text.push_str(&format!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"{SMALL}\" text-anchor=\"{anchor}\" fill=\"#7a3b00\" \
                 stroke=\"#ffffff\" stroke-width=\"4\" paint-order=\"stroke\"{style}>{}</text>\n",
                y - SMALL * (LEADING - 1.0),
                escaped(&step.text)
            ));
        }
    }

    fn legend(&mut self, size: Size) {
        let y = size.height - MARGIN;
        self.text.push_str(&format!(
            "<path d=\"M{MARGIN} {y:.1}l36 0\" fill=\"none\" stroke=\"#44546a\" stroke-width=\"1.3\" \
             stroke-dasharray=\"6 4\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"{SMALL}\" fill=\"#4a5a70\">\
             made by hand</text>\n",
            MARGIN + 44.0,
            y + 4.0
        ));
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
