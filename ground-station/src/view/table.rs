//! Aligned columns.

use super::{Paint, Style};

/// One cell: text, and perhaps a colour.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    paint: Option<Paint>,
}

impl Cell {
    /// Plain text.
    pub fn plain(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            paint: None,
        }
    }

    /// The value as plain text; empty if there is none.
    pub fn optional(value: Option<impl ToString>) -> Self {
        Self::plain(value.map(|value| value.to_string()).unwrap_or_default())
    }

    /// Text in a colour.
    pub fn painted(text: impl Into<String>, paint: Paint) -> Self {
        Self {
            text: text.into(),
            paint: Some(paint),
        }
    }
}

/// Least width of a last column that is cut, in columns of the terminal.
const LAST_COLUMN_MIN: usize = 24;

/// Lines of aligned cells under a heading; columns that are empty in every row are left out.
pub fn render(heading: &[&str], rows: &[Vec<Cell>], style: Style) -> Vec<String> {
    let used = |column: usize| {
        rows.iter()
            .any(|row| row.get(column).is_some_and(|cell| !cell.text.is_empty()))
    };
    let columns: Vec<usize> = (0..heading.len()).filter(|column| used(*column)).collect();
    let heading: Vec<Cell> = heading
        .iter()
        .map(|text| Cell::painted(*text, Paint::Strong))
        .collect();
    let all = || std::iter::once(&heading).chain(rows);
    let widths: Vec<usize> = columns
        .iter()
        .map(|column| {
            all()
                .filter_map(|row| row.get(*column))
                .map(|cell| width(&cell.text))
                .max()
                .unwrap_or(0)
        })
        .collect();
    all()
        .map(|row| {
            let mut left = style.columns.unwrap_or(usize::MAX);
            let mut line = String::new();
            let mut gap = 0;
            for (column, column_width) in columns.iter().zip(&widths) {
                let Some(cell) = row.get(*column) else { continue };
                if cell.text.is_empty() {
                    gap += column_width + 2;
                    continue;
                }
                if gap >= left {
                    break;
                }
                let text = truncate(&cell.text, left - gap);
                if text == "…" && cell.text != "…" {
                    // That says nothing.
                    break;
                }
                line.push_str(&" ".repeat(gap));
                left -= gap;
                let taken = width(&text);
                left -= taken;
                line.push_str(
                    &cell
                        .paint
                        .map_or_else(|| text.clone(), |paint| style.paint(&text, paint)),
                );
                gap = column_width - width(&cell.text) + 2;
            }
            line
        })
        .collect()
}

/// The rows with columns of `drop_order` emptied, in that order, until all fit. The last column may be
/// cut, but not below `LAST_MIN`.
pub fn drop_columns_to_fit(
    heading: &[&str],
    rows: &[Vec<Cell>],
    style: Style,
    drop_order: &[&str],
) -> Vec<Vec<Cell>> {
    let mut rows = rows.to_vec();
    let Some(columns) = style.columns else { return rows };
    let needs = |rows: &[Vec<Cell>]| -> usize {
        let widths = heading.iter().enumerate().map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| width(&cell.text)).max().unwrap_or(0);
            match widest {
                0 => 0,
                _ if column + 1 == heading.len() => widest.max(width(title)).min(LAST_COLUMN_MIN) + 2,
                _ => widest.max(width(title)) + 2,
            }
        });
        widths.sum::<usize>().saturating_sub(2)
    };
    for title in drop_order {
        if needs(&rows) <= columns {
            break;
        }
        let Some(column) = heading.iter().position(|known| known == title) else {
            continue;
        };
        for cell in rows.iter_mut().filter_map(|row| row.get_mut(column)) {
            cell.text.clear();
        }
    }
    rows
}

/// The columns that a text takes on a terminal: wide characters of East Asia take two, marks that combine none.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// The text, or as much of it as fits, ending in `…`.
pub fn truncate(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut taken = 0;
    for c in text.chars() {
        if taken + char_width(c) + 1 > columns {
            break;
        }
        taken += char_width(c);
        kept.push(c);
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

fn char_width(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}
