//! Ports, by number or by the name that the container gives them.

use k8s_openapi::{api::core::v1::ContainerPort, apimachinery::pkg::util::intstr::IntOrString};

use super::HandlerError;

/// The number of `port`: a name is one of `ports`, or else a number written as text (upstream
/// `probe.ResolveContainerPort`).
///
/// # Errors
/// [`HandlerError::UnknownPort`], [`HandlerError::InvalidPort`].
pub(super) fn resolve(port: &IntOrString, ports: &[ContainerPort]) -> Result<u16, HandlerError> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => match ports.iter().find(|port| port.name.as_deref() == Some(name)) {
            Some(port) => i64::from(port.container_port),
            None => name.parse().map_err(|_| HandlerError::UnknownPort { name: name.clone() })?,
        },
    };
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(HandlerError::InvalidPort(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_names_of_the_container_or_numbers_as_text() {
        let ports = [ContainerPort { name: Some("web".to_owned()), container_port: 8080, ..ContainerPort::default() }];
        let text = |text: &str| IntOrString::String(text.to_owned());
        for (port, number) in [
            (IntOrString::Int(80), Some(80)),
            (text("web"), Some(8080)),
            (text("81"), Some(81)),
            (text("other"), None),
            (IntOrString::Int(0), None),
            (IntOrString::Int(65536), None),
            (text("-1"), None),
        ] {
            assert_eq!(resolve(&port, &ports).ok(), number, "{port:?}");
        }
        assert_eq!(
            resolve(&text("other"), &ports).unwrap_err().to_string(),
            "port \"other\" is not a port of the container"
        );
    }
}
