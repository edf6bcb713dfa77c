//! Text from outside (hub, twin, disk, configuration), made safe for a terminal or a log: control
//! characters could rewrite the screen or begin a line of their own, and others make text look like
//! another.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether terminals and browsers act on this character instead of showing it: controls (C0,
/// DELETE, C1), line and paragraph separators, and the format characters of Unicode 16 (general
/// category Cf), which are invisible or turn the direction of the text that follows (Unicode
/// Standard Annex 9). Those of them that are drawn, such as U+06DD, stay.
fn is_acted_upon(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// One line of text, with a space in place of each character that would be acted upon.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_acted_upon) {
        return text.into();
    }
    text.chars().map(|c| if is_acted_upon(c) { ' ' } else { c }).collect::<String>().into()
}

/// The same JSON with `\uXXXX` in place of these characters (RFC 8259 §7). Outside of strings JSON
/// has none of them but line feeds, which stay.
pub(crate) fn escaped_json(json: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| is_acted_upon(c) && c != '\n';
    if !json.contains(is_escaped) {
        return json.into();
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_escaped(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a `String` can't fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind.
    const ACTED_UPON: [char; 26] = [
        '\0',
        '\u{7}',
        '\t',
        '\n',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{80}',
        '\u{85}',
        '\u{9b}',
        '\u{9f}',
        '\u{ad}',
        '\u{61c}',
        '\u{200b}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202e}',
        '\u{2066}',
        '\u{2069}',
        '\u{feff}',
        '\u{fffb}',
        '\u{1d173}',
        '\u{e0041}',
    ];
    const SHOWN: [char; 9] = [' ', '~', '\u{a0}', 'é', '\u{301}', '泵', '\u{6dd}', '�', '🛠'];

    #[test]
    fn what_a_terminal_acts_upon_becomes_a_space_and_all_else_stays() {
        for c in ACTED_UPON {
            assert_eq!(printable(&format!("a{c}b")), "a b", "U+{:04X}", u32::from(c));
        }
        for c in SHOWN {
            assert!(matches!(printable(&format!("a{c}b")), Cow::Borrowed(_)), "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn json_keeps_its_value_and_shows_no_character_that_a_terminal_acts_upon() {
        let all: String = ACTED_UPON.into_iter().chain(SHOWN).collect();
        let value = serde_json::json!({"text": all, all.clone(): [1]});
        for json in [value.to_string(), format!("{value:#}")] {
            let escaped = escaped_json(&json);
            assert!(!escaped.contains(|c| is_acted_upon(c) && c != '\n'), "{escaped:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }
}
