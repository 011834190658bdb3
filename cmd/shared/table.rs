//! Tables and labelled lines for people: columns as wide as they need to be, and never more than 100 columns where there
//! are blanks to break at.

use std::time::Duration;

use machines::{duration, shown};

/// What fits on a line.
const WIDTH: usize = 100;
/// A last column is not made narrower than this, whatever is before it.
const NARROWEST: usize = 24;

/// Rows under a heading.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts with the heading.
    pub fn new<const COLUMNS: usize>(heading: [&str; COLUMNS]) -> Self {
        Self { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Without a heading.
    pub fn plain() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        // As it will be printed, or the columns would be too narrow. The last one is broken at its line breaks.
        let last = COLUMNS.saturating_sub(1);
        let shown =
            |(column, cell): (usize, String)| if column < last { shown::line(&cell).into_owned() } else { cell };
        self.rows.push(cells.into_iter().enumerate().map(shown).collect());
    }

    /// The lines, without trailing blanks; the last column goes on below itself.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.saturating_sub(1)).map(width).collect();
        let lines = |row: &Vec<String>| {
            let before: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
            labelled(&before, row.get(widths.len()).map_or("", String::as_str))
        };
        self.rows.iter().flat_map(lines).collect()
    }
}

/// A text behind its label, broken at blanks; what follows is below the start of the text.
pub fn labelled(label: &str, text: &str) -> Vec<String> {
    let indent = label.chars().count();
    let width = WIDTH.saturating_sub(indent).max(NARROWEST);
    let mut lines = vec![label.to_owned()];
    let mut length = 0;
    for word in text.split([' ', '\n']) {
        let word = shown::line(word);
        let word_length = word.chars().count();
        if length > 0 && length + 1 + word_length > width {
            lines.push(" ".repeat(indent));
            length = 0;
        }
        if let Some(line) = lines.last_mut() {
            if length > 0 {
                line.push(' ');
                length += 1;
            }
            line.push_str(&word);
            length += word_length;
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// `5s`, `3m`, `2h`, `4d` since a moment.
pub fn ago(moment: jiff::Timestamp) -> String {
    age(jiff::Timestamp::now().as_second() - moment.as_second())
}

/// Until a moment that comes, to the minute when that is an hour or more: what was just set to 2h is not shown as 1h.
pub fn until(moment: jiff::Timestamp) -> String {
    let left = moment.duration_since(jiff::Timestamp::now()).as_secs_f64().max(0.0);
    let unit = if left < 3_570.0 { 1.0 } else { 60.0 };
    duration::format(Duration::from_secs_f64((left / unit).round() * unit))
}

fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
