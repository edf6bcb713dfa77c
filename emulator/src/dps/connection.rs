//! One connection to the Device Provisioning Service, from CONNECT to its end.

use rumqttc::{ConnAck, Connect, ConnectReturnCode, Packet};
use tokio::time::sleep;
use tracing::{debug, info};

use super::Registrant;
use super::exchange::Conversation;
use crate::hub::{Ending, Hub};
use crate::mqtt::silence_max;
use crate::sas::Token;
use crate::strangers::Stranger;
use crate::wire::{Transport, Wire};

/// Serves a connection whose CONNECT has come in.
pub(crate) async fn serve<S: Transport>(hub: &Hub, mut wire: Wire<S>, connect: Connect, stranger: &Stranger) {
    let registrant = Registrant::read(&connect).filter(|it| it.id_scope == hub.options.id_scope);
    let password = connect.login.map(|login| login.password).unwrap_or_default();
    let Some(registrant) = registrant.filter(|_| Token::parse(&password).is_some()) else {
        info!(client = %connect.client_id.escape_debug(), "refused by the provisioning service");
        hub.refuse_malformed(&connect.client_id);
        wire.put(Packet::ConnAck(ConnAck::new(ConnectReturnCode::NotAuthorized, false)));
        return wire.farewell().await;
    };
    wire.put(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false)));
    let silence_max = silence_max(connect.keep_alive, hub.options.keep_alive_max);
    let mut conversation = Conversation::new(registrant, password);
    let mut silence = std::pin::pin!(sleep(silence_max));
    loop {
        let mut heard = false;
        while wire.has_room() {
            let answers = match wire.next_packet() {
                Ok(Some(packet)) => conversation.handle(hub, packet),
                Ok(None) => break,
                Err(_) => Err(Ending::Violation("no MQTT")),
            };
            heard = true;
            match answers {
                Ok(answers) => answers.into_iter().for_each(|answer| wire.put(answer)),
                Err(ending) => {
                    debug!(registration = %conversation.registrant.registration_id, ?ending, "closing");
                    return wire.farewell().await;
                }
            }
        }
        if heard {
            silence.set(sleep(silence_max));
        }
        tokio::select! {
            biased;
            () = stranger.asked_to_go() => return debug!("dropped to make room"),
            () = &mut silence => return wire.farewell().await,
            progress = wire.progress() => if let Err(error) = progress {
                return debug!(%error, "ended");
            },
        }
    }
}
