//! Users of this machine, as the audit names them.

use std::sync::OnceLock;

/// Where login names are looked up. A directory service may know more users; those are shown by number.
const PASSWD_FILE: &str = "/etc/passwd";

/// The login name of the user that runs this process.
pub fn current() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| login_name(rustix::process::getuid().as_raw()))
}

/// The login name of a user, or `uid NUMBER` if there is none.
pub fn login_name(uid: u32) -> String {
    let passwd = std::fs::read(PASSWD_FILE).unwrap_or_default();
    find_login_name(&String::from_utf8_lossy(&passwd), uid).unwrap_or_else(|| format!("uid {uid}"))
}

/// Reads passwd(5): `name:password:UID:…`.
fn find_login_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, number) = (fields.next()?, fields.next()?, fields.next()?);
        (number.parse() == Ok(uid) && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_name_is_found_by_uid() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\n\nbad line\n:x:7:::\npi:x:1000:1000:,,,:/home/pi:/bin/bash\n";
        assert_eq!(find_login_name(passwd, 0).as_deref(), Some("root"));
        assert_eq!(find_login_name(passwd, 1000).as_deref(), Some("pi"));
        assert_eq!(find_login_name(passwd, 7), None);
        assert_eq!(find_login_name("", 0), None);
        assert_eq!(login_name(u32::MAX - 1), "uid 4294967294");
        assert!(!current().is_empty());
    }
}
