//! Where things go in a picture: the layered method of Sugiyama, Tagawa and Toda in its simplest form. States stand in
//! rows from top to bottom; between two rows of states is a row for what is written at the arrows, so that no text covers
//! another. In: sizes and arrows. Out: the places of the boxes, and for each arrow the points it goes through. Lengths are
//! in pixels.

/// Between boxes of a row.
const GAP: f64 = 28.0;
/// Between rows.
const ROW_GAP: f64 = 22.0;
/// The width that an arrow takes which passes a row of states.
const PASSING: f64 = 14.0;
/// Rounds of bringing what is connected near to each other.
const ROUNDS: usize = 12;

/// A width and a height.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    pub width: f64,
    pub height: f64,
}

/// An arrow between two boxes that are not the same, with the size of its text.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    pub from: usize,
    pub to: usize,
    pub text: Size,
}

/// A point.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
}

/// What a place in a row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Box(usize),
    Text(usize),
    Passing,
}

#[derive(Debug, Clone)]
struct Place {
    purpose: Use,
    size: Size,
    /// Of what is drawn in it, if that is smaller.
    body: Size,
    row: usize,
    /// The middle.
    x: f64,
    above: Vec<usize>,
    below: Vec<usize>,
}

/// The outcome.
#[derive(Debug, Default)]
pub struct Layout {
    /// The middle of each box.
    pub boxes: Vec<Point>,
    /// The middle of each arrow's text.
    pub texts: Vec<Point>,
    /// From the edge of one box to that of the other.
    pub ways: Vec<Vec<Point>>,
    pub size: Size,
}

/// Lays boxes and lines out; the first box comes to the top. A box may want more room than its body takes.
pub fn lay_out(boxes: &[Size], bodies: &[Size], lines: &[Line]) -> Layout {
    let rows = rank(boxes.len(), lines);
    let row_of = |index: usize| rows.get(index).copied().unwrap_or_default();
    let mut places: Vec<Place> =
        boxes.iter().enumerate().map(|(index, size)| Place::new(Use::Box(index), *size, row_of(index) * 2)).collect();
    for (place, body) in places.iter_mut().zip(bodies) {
        place.body = *body;
    }
    let mut chains = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let (upper, lower) =
            if row_of(line.from) <= row_of(line.to) { (line.from, line.to) } else { (line.to, line.from) };
        let (first, last) = (row_of(upper) * 2, row_of(lower) * 2);
        // The text goes into a row between two rows of states, in the middle of the way.
        let middle = first + ((last - first) / 2) / 2 * 2 + 1;
        let mut chain = vec![upper];
        for row in first + 1..last {
            let place = if row == middle {
                Place::new(Use::Text(index), line.text, row)
            } else {
                Place::new(Use::Passing, Size { width: PASSING, height: 0.0 }, row)
            };
            chain.push(places.len());
            places.push(place);
        }
        chain.push(lower);
        for (above, below) in chain.iter().zip(chain.iter().skip(1)) {
            if let Some(place) = places.get_mut(*above) {
                place.below.push(*below);
            }
            if let Some(place) = places.get_mut(*below) {
                place.above.push(*above);
            }
        }
        chains.push(chain);
    }
    let mut table = Table::new(places);
    table.arrange();
    table.finish(boxes.len(), lines, &chains, row_of)
}

/// The row of each box: one below the lowest of those from which it is reached, without the arrows that lead back.
fn rank(count: usize, lines: &[Line]) -> Vec<usize> {
    let mut leaving: Vec<Vec<usize>> = vec![Vec::new(); count];
    for line in lines {
        if let Some(leaving) = leaving.get_mut(line.from) {
            leaving.push(line.to);
        }
    }
    // A depth-first search finds which arrows lead back to a box that it is still inside of; left in reverse, the boxes
    // are sorted by the others.
    let mut position = vec![None; count];
    let mut order = Vec::new();
    let mut seen = vec![false; count];
    for start in 0..count {
        let mut path = vec![(start, 0)];
        while let Some((at, next)) = path.pop() {
            if next == 0 {
                match seen.get_mut(at) {
                    Some(seen) if !*seen => *seen = true,
                    _ => continue,
                }
            }
            match leaving.get(at).and_then(|leaving| leaving.get(next)) {
                Some(following) => {
                    path.push((at, next + 1));
                    path.push((*following, 0));
                }
                None => order.push(at),
            }
        }
    }
    order.reverse();
    for (index, at) in order.iter().enumerate() {
        if let Some(slot) = position.get_mut(*at) {
            *slot = Some(index);
        }
    }
    let mut rows = vec![0; count];
    for at in &order {
        let row = rows.get(*at).copied().unwrap_or_default();
        for to in leaving.get(*at).into_iter().flatten() {
            let is_forward = position.get(*at) < position.get(*to);
            if let Some(target) = rows.get_mut(*to).filter(|_| is_forward) {
                *target = (*target).max(row + 1);
            }
        }
    }
    rows
}

impl Place {
    fn new(purpose: Use, size: Size, row: usize) -> Self {
        Self { purpose, size, body: size, row, x: 0.0, above: Vec::new(), below: Vec::new() }
    }
}

/// The places by row, from left to right.
struct Table {
    places: Vec<Place>,
    rows: Vec<Vec<usize>>,
}

impl Table {
    fn new(places: Vec<Place>) -> Self {
        let count = places.iter().map(|place| place.row + 1).max().unwrap_or_default();
        let mut rows = vec![Vec::new(); count];
        for (index, place) in places.iter().enumerate() {
            if let Some(row) = rows.get_mut(place.row) {
                row.push(index);
            }
        }
        Self { places, rows }
    }

    /// Where a place would like to be: in the middle of what it is connected to, above or below.
    fn wish(&self, index: usize, is_down: bool) -> f64 {
        let Some(place) = self.places.get(index) else { return 0.0 };
        let (first, second) = if is_down { (&place.above, &place.below) } else { (&place.below, &place.above) };
        let neighbours = if first.is_empty() { second } else { first };
        let places: Vec<f64> = neighbours.iter().filter_map(|index| Some(self.places.get(*index)?.x)).collect();
        if places.is_empty() { place.x } else { places.iter().sum::<f64>() / count(places.len()) }
    }

    fn arrange(&mut self) {
        for row in 0..self.rows.len() {
            self.pack(row, None);
        }
        for round in 0..ROUNDS {
            let is_down = round % 2 == 0;
            for step in 0..self.rows.len() {
                let row = if is_down { step } else { self.rows.len() - 1 - step };
                // The order settles first, then only the places move.
                if round < ROUNDS - 4 {
                    let members = self.rows.get(row).into_iter().flatten();
                    let mut wishes: Vec<(f64, usize)> =
                        members.map(|index| (self.wish(*index, is_down), *index)).collect();
                    wishes.sort_by(|left, right| left.0.total_cmp(&right.0));
                    if let Some(row) = self.rows.get_mut(row) {
                        *row = wishes.into_iter().map(|(_, index)| index).collect();
                    }
                }
                self.pack(row, Some(is_down));
            }
        }
    }

    /// Puts a row's places beside each other, as near to where they would like to be as their order allows.
    fn pack(&mut self, row: usize, is_down: Option<bool>) {
        let Some(members) = self.rows.get(row).cloned() else { return };
        let mut right = f64::NEG_INFINITY;
        let mut excess = 0.0;
        let mut placed = Vec::new();
        for index in &members {
            let half = self.places.get(*index).map_or(0.0, |place| place.size.width / 2.0);
            let wish = is_down.map_or(0.0, |is_down| self.wish(*index, is_down));
            let x = if right.is_finite() { wish.max(right + GAP + half) } else { wish };
            excess += x - wish;
            right = x + half;
            placed.push(x);
        }
        let shift = excess / count(members.len().max(1));
        for (index, x) in members.iter().zip(placed) {
            if let Some(place) = self.places.get_mut(*index) {
                place.x = x - shift;
            }
        }
    }

    fn finish(
        mut self,
        boxes: usize,
        lines: &[Line],
        chains: &[Vec<usize>],
        row_of: impl Fn(usize) -> usize,
    ) -> Layout {
        let left = self.places.iter().map(|place| place.x - place.size.width / 2.0).fold(f64::INFINITY, f64::min);
        for place in &mut self.places {
            place.x -= if left.is_finite() { left } else { 0.0 };
        }
        let heights = self.rows.iter().map(|row| {
            row.iter().filter_map(|index| self.places.get(*index)).map(|place| place.size.height).fold(0.0, f64::max)
        });
        let mut middles = Vec::new();
        let mut bottom = 0.0;
        for height in heights {
            middles.push((bottom + height / 2.0, height));
            bottom += height + ROW_GAP;
        }
        let row = |place: &Place| middles.get(place.row).copied().unwrap_or_default();
        let middle = |index: usize| {
            self.places.get(index).map_or(Point::default(), |place| Point { x: place.x, y: row(place).0 })
        };
        let mut layout = Layout {
            boxes: (0..boxes).map(middle).collect(),
            texts: vec![Point::default(); lines.len()],
            ways: Vec::new(),
            size: Size {
                width: self.places.iter().map(|place| place.x + place.size.width / 2.0).fold(0.0, f64::max),
                height: (bottom - ROW_GAP).max(0.0),
            },
        };
        for (line, chain) in lines.iter().zip(chains) {
            let mut way = Vec::new();
            for (step, index) in chain.iter().enumerate() {
                let Some(place) = self.places.get(*index) else { continue };
                let (y, height) = row(place);
                match place.purpose {
                    Use::Box(_) if step == 0 => way.push(Point {
                        x: self.port(*index, chain.get(1).copied(), true),
                        y: y + place.body.height / 2.0,
                    }),
                    Use::Box(_) => way.push(Point {
                        x: self.port(*index, chain.get(step.saturating_sub(1)).copied(), false),
                        y: y - place.body.height / 2.0,
                    }),
                    Use::Text(text) => {
                        if let Some(slot) = layout.texts.get_mut(text) {
                            *slot = Point { x: place.x, y };
                        }
                        way.push(Point { x: place.x, y });
                    }
                    Use::Passing => {
                        way.push(Point { x: place.x, y: y - height / 2.0 });
                        way.push(Point { x: place.x, y: y + height / 2.0 });
                    }
                }
            }
            if row_of(line.from) > row_of(line.to) {
                way.reverse();
            }
            layout.ways.push(way);
        }
        layout
    }

    /// Where on its lower or upper edge a box meets the arrow that comes from a neighbour: side by side in the order of
    /// the neighbours, so that arrows don't cross there.
    fn port(&self, index: usize, neighbour: Option<usize>, is_lower: bool) -> f64 {
        let Some(place) = self.places.get(index) else { return 0.0 };
        let mut neighbours = if is_lower { place.below.clone() } else { place.above.clone() };
        let x = |index: &usize| self.places.get(*index).map_or(0.0, |place| place.x);
        neighbours.sort_by(|left, right| x(left).total_cmp(&x(right)));
        let position = neighbours.iter().position(|other| Some(*other) == neighbour).unwrap_or_default();
        let share = count(position + 1) / count(neighbours.len() + 1);
        place.x + place.body.width * 0.8 * (share - 0.5)
    }
}

/// Counts are far below what a float holds exactly.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
